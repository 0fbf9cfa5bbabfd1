"""Files encrypted to the service before they leave this machine (`app.age` decrypts them there): one request each, and none goes on where it broke off."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import pyrage

from app.age import ENDING
from app.errors import ChecksumMismatch, Unprocessable
from app.flows import Call, Flow, Progress
from app.sending import Address, send_folder


def upload(path: Path, name: str, kind: str | None, recipient: str, progress: Progress, service: str) -> Flow:
    """The encrypted bytes of a file lie in a temporary one meanwhile.

    Raises:
        Unprocessable: `recipient` is none of age. ChecksumMismatch: what was decrypted there is not what was encrypted here.
    """
    try:
        to = pyrage.x25519.Recipient.from_str(recipient)
    except pyrage.RecipientError:
        raise Unprocessable(f"{recipient[:100]!r} is no recipient of age: age1 and 58 letters and digits") from None

    def one(path: Path, name: str, kind: str | None, progress: Progress, _: Address | None = None) -> Flow:
        with tempfile.TemporaryDirectory() as folder, path.open("rb") as plain, (sealed := Path(folder, "x")).open("wb") as out:
            reading = _Hashing(plain)
            pyrage.encrypt_io(reading, out, [to])
            out.flush()
            params = {"name": name + ENDING} | ({"kind": kind} if kind else {})
            made = (yield Call("POST", "/v1/artifacts", params, source=sealed, progress=progress)).json()
        if made["files"][0]["sha256"] != (sha256 := reading.digest.hexdigest()):
            yield Call("DELETE", f"/v1/artifacts/{made['id']}")
            raise ChecksumMismatch(f"{path} has SHA-256 {sha256}, and {made['files'][0]['sha256']} arrived")
        return made

    return (yield from send_folder(path, name, kind, progress, service, one) if path.is_dir() else one(path, name, kind, progress))


class _Hashing:
    """A file whose bytes are hashed as they are read."""

    def __init__(self, file):
        self._file, self.digest = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.digest.update(data)
        return data
