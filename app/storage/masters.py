"""Master keys: they wrap the data keys of encrypted objects, each in an envelope of its own beside the objects, and encrypt nothing else.

    keys/<id of the data key>    {"v": 1, "master": "2026a", "nonce": base64 (12 bytes), "wrapped": base64 (48 bytes)}
    keys/names                   the same for the secret that names are made of

`wrapped` is AES-256-GCM under the master key; the associated data are the lines `modelpress data key`, the master's id, the data key's id. So rotation writes envelopes anew and
no data, and an envelope that was moved elsewhere opens nothing.

Master keys are lines `ID:BASE64` (32 bytes), in a file or a setting. The first one wraps what is new; all of them unwrap.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from app.config import settings
from app.errors import EncryptionKeyMissing, StorageDamaged

_LINE = re.compile(r"([A-Za-z0-9._-]{1,64}):([A-Za-z0-9+/_-]{43}=?)", re.ASCII)


def new_line(ident: str) -> str:
    """A new master key as its line."""
    return f"{ident}:{base64.b64encode(os.urandom(32)).decode()}"


class Masters:
    """Args: keys: by id; the first one wraps."""

    def __init__(self, keys: dict[str, bytes]):
        self.keys, self.current = keys, next(iter(keys))

    @classmethod
    def parse(cls, text: str) -> Masters:
        """Raises:
        ValueError: a line is no master key, or there is none. It does not tell what stands there.
        """
        keys: dict[str, bytes] = {}
        for number, line in enumerate(re.split(r"[\n;]", text), 1):
            if not (line := line.strip()) or line.startswith("#"):
                continue
            found = _LINE.fullmatch(line)
            try:
                key = base64.b64decode(found[2].rstrip("=") + "=", b"-_" if re.search("[-_]", found[2]) else None, validate=True) if found else b""
            except binascii.Error:
                key = b""
            if len(key) != 32 or found[1] in keys:
                raise ValueError(f"line {number} of the master keys is not ID:BASE64 of 32 bytes with an id of its own; `modelpress encryption new-key ID` makes one")
            keys[found[1]] = key
        if not keys:
            raise ValueError("there is no master key; `modelpress encryption new-key ID` makes one")
        return cls(keys)

    @classmethod
    def read(cls, path: Path) -> Masters:
        """Raises:
        ValueError: see `parse`; or others may read the file.
        """
        if path.stat().st_mode & 0o077:
            raise ValueError(f"others may read {path}: chmod 600 it, and replace the key if they may have")
        return cls.parse(path.read_text())

    def wrap(self, ident: str, key: bytes) -> bytes:
        """The envelope of a data key."""
        nonce = os.urandom(12)
        wrapped = AESGCM(self.keys[self.current]).encrypt(nonce, key, _bound(self.current, ident))
        document = {"v": 1, "master": self.current, "nonce": base64.b64encode(nonce).decode(), "wrapped": base64.b64encode(wrapped).decode()}
        return json.dumps(document).encode()

    def unwrap(self, ident: str, envelope: bytes) -> bytes:
        """Raises:
        EncryptionKeyMissing: no master key here is the one. StorageDamaged: this is no envelope.
        """
        try:
            document = json.loads(envelope)
            master, nonce, wrapped = document["master"], base64.b64decode(document["nonce"]), base64.b64decode(document["wrapped"])
            good = document["v"] == 1 and type(master) is str and len(nonce) == 12
        except (ValueError, KeyError, TypeError):
            good = False
        if not good:
            raise StorageDamaged(f"the envelope of data key {ident} cannot be read")
        if master not in self.keys:
            raise EncryptionKeyMissing(f"what is asked for is encrypted under master key {master[:64]!r}, and this process has {', '.join(self.keys)}")
        try:
            return AESGCM(self.keys[master]).decrypt(nonce, wrapped, _bound(master, ident))
        except InvalidTag:
            raise EncryptionKeyMissing(f"master key {master[:64]!r} is not the one that what is asked for was encrypted under, or the envelope was changed") from None

    @classmethod
    def configured(cls) -> Masters | None:
        """Those of the settings; None: nothing is encrypted.

        Raises:
            ValueError: see `parse` and `read`.
        """
        if (file := settings().master_key_file) is not None:
            return cls.read(file)
        text = settings().master_keys
        return cls.parse(text.get_secret_value()) if text is not None and text.get_secret_value() else None

    def wrapped_by(self, envelope: bytes) -> str:
        return str(json.loads(envelope)["master"])


def _bound(master: str, ident: str) -> bytes:
    return f"modelpress data key\n{master}\n{ident}".encode()
