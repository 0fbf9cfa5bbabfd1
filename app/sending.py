"""Sending files: a small one in one request, a large one so that it goes on where it was after whatever breaks off (tus), a folder several at a time."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

from app import tus
from app.config import settings
from app.errors import ChecksumMismatch, InputRefused, ModelpressError, NotFound, OffsetMismatch, error_of
from app.flows import CHUNK, Call, Flow, Pause, Progress, Together

LARGE = 64 << 20  # bytes from which on a file is sent by tus
AT_ONCE = 4  # files of a folder
WAITS = (0.5, 1, 2, 4, 8, 15, 15, 15)  # seconds before the next try, for as long as none brings anything forward
_PASSING = (408, 423, 502, 503, 504)  # statuses that another try may not meet again
_ADDRESS = re.compile(r"/v1/uploads/[0-9a-f-]{36}")
_KEPT = 7 * 24 * 3600.0  # seconds that an upload's address is remembered


def upload_file(path: Path, name: str, kind: str | None, progress: Progress, service: str) -> Flow:
    """`service`: its address, for what is remembered of an upload that broke off."""
    address = Address(path, service, name, kind)
    made = yield from _upload(path, name, kind, progress, address)
    address.forget()
    return made


def _upload(path: Path, name: str, kind: str | None, progress: Progress, address: Address) -> Flow:
    """The address is kept, so that whoever breaks off after this finds the artifact again."""
    if path.stat().st_size >= LARGE:
        return (yield from _resumable(path, name, kind, progress, address))
    with path.open("rb") as f:
        digest = base64.b64encode(hashlib.file_digest(f, "sha256").digest()).decode()
    params = {"name": name} | ({"kind": kind} if kind else {})
    response = yield Call("POST", "/v1/artifacts", params, headers={"Repr-Digest": f"sha-256=:{digest}:"}, source=path, progress=progress)
    return response.json()


def upload_folder(folder: Path, name: str, kind: str | None, progress: Progress, service: str) -> Flow:
    return (yield from send_folder(folder, name, kind, progress, service, _upload))


def send_folder(folder: Path, name: str, kind: str | None, progress: Progress, service: str, send: Callable[..., Flow]) -> Flow:
    """`send` takes a file, its name and kind, the progress, and the address to keep."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    if not paths:
        raise InputRefused("unsupported-format", f"{folder} holds no file")
    each = kind if kind in ("images", "dataset") else None  # of a model's files each is told by its name
    addresses = [Address(path, service, path.name, each) for path in paths]
    sent = yield Together([send(path, path.name, each, progress, address) for path, address in zip(paths, addresses, strict=True)], AT_ONCE)
    parts = [{"path": path.relative_to(folder).as_posix(), "artifact": part["id"]} for path, part in zip(paths, sent, strict=True)]
    body = {"files": parts, "name": name} | ({"kind": kind} if kind else {})
    whole = (yield Call("POST", "/v1/artifacts", json=body)).json()
    for ident in {p["artifact"] for p in parts}:
        yield Call("DELETE", f"/v1/artifacts/{ident}")
    for address in addresses:
        address.forget()
    return whole


def _resumable(path: Path, name: str, kind: str | None, progress: Progress, address: Address) -> Flow:
    """Send a file by tus. Its digest is computed meanwhile and compared in the end, so that nothing waits for it."""
    size, moved, tries, answered = path.stat().st_size, 0, 0, False

    def advance(n: int) -> None:
        nonlocal moved
        moved += n
        progress(n)

    with Hashing(path) as hashing:
        while True:
            try:
                known = address.url is not None
                view = (yield Call("GET", address.url)).json() if known else (yield from _begin(path, size, name, kind, address))
                answered, before = True, moved
                if view["error"]:
                    raise error_of(view["error"])
                if view["offset"] == size and not view["artifact"]:  # it became one that was deleted since
                    address.forget()
                advance(view["offset"] - moved)
                tries = 0 if moved > before else tries
                if view["artifact"]:
                    return (yield from _verified(view["artifact"], path, hashing, address))
                if address.url is not None:
                    headers = {"Tus-Resumable": tus.VERSION, "Upload-Offset": str(moved), "Content-Type": tus.MEDIA_TYPE}
                    yield Call("PATCH", address.url, headers=headers, source=path, start=moved, progress=advance)
            except ModelpressError as e:
                gone = isinstance(e, NotFound) and address.url is not None
                if gone or isinstance(e, (InputRefused, ChecksumMismatch)):
                    address.forget()
                again = gone or (answered and (e.status in _PASSING or isinstance(e, OffsetMismatch)))
                if not again or tries == len(WAITS):
                    raise
                yield Pause(0 if gone else WAITS[tries])
                tries += 1


def _begin(path: Path, size: int, name: str, kind: str | None, address: Address) -> Flow:
    said = {"filename": name} | ({"kind": kind} if kind else {})
    metadata = ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in said.items())
    response = yield Call("POST", "/v1/uploads", headers={"Tus-Resumable": tus.VERSION, "Upload-Length": str(size), "Upload-Metadata": metadata})
    address.keep(response.headers.get("location", ""))
    return {"offset": 0, "artifact": None, "error": None}


def _verified(artifact: str, path: Path, hashing: Hashing, address: Address) -> Flow:
    """The artifact, once it has proved to be what the file is."""
    made, sha256 = (yield Call("GET", f"/v1/artifacts/{artifact}")).json(), hashing.result()
    if (got := made["files"][0]["sha256"]) != sha256:
        address.forget()
        yield Call("DELETE", f"/v1/artifacts/{artifact}")
        raise ChecksumMismatch(f"{path} has SHA-256 {sha256}, and {got} arrived: it was changed while it was sent; send it again")
    return made


class Hashing:
    """A file's SHA-256, computed by a thread while this is open."""

    def __init__(self, path: Path):
        self._path, self._digest, self._failure = path, hashlib.sha256(), None
        self._stopped, self._thread = Event(), Thread(target=self._run, daemon=True)

    def __enter__(self) -> Hashing:
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stopped.set()

    def _run(self) -> None:
        try:
            with self._path.open("rb") as f:
                while (block := f.read(CHUNK)) and not self._stopped.is_set():
                    self._digest.update(block)
        except OSError as e:
            self._failure = e

    def result(self) -> str:
        """Hex digits, once all of it is hashed.

        Raises:
            OSError: of reading the file.
        """
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self._digest.hexdigest()


class Address:
    """Where an upload goes on, remembered in the home folder by what it is an upload of: `url` is the path on the service, or None."""

    def __init__(self, path: Path, service: str, name: str, kind: str | None):
        found = path.stat()
        key = "\0".join(map(str, (service, path.resolve(), found.st_size, found.st_mtime_ns, name, kind)))
        self._file = settings().home / "uploads" / hashlib.sha256(key.encode()).hexdigest()
        try:
            self.url = self._known(self._file.read_text())
        except (OSError, ValueError):
            self.url = None

    @staticmethod
    def _known(text: str) -> str | None:
        """A path on the service and nothing else: wherever an answer points to, the API key goes nowhere else."""
        found = _ADDRESS.search(text)
        return found[0] if found else None

    def keep(self, location: str) -> None:
        """Raises:
        ModelpressError: it is none.
        """
        self.url = self._known(location)
        if self.url is None:
            raise ModelpressError(f"the service names {location[:200]!r} as the upload's address")
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in self._file.parent.iterdir():
            if old.stat().st_mtime < time.time() - _KEPT:
                old.unlink(missing_ok=True)
        self._file.write_text(self.url)

    def forget(self) -> None:
        self.url = None
        self._file.unlink(missing_ok=True)
