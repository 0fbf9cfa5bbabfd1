"""A key of the uploader's own, as a request brings it (in the manner of S3's SSE-C), held against what the database knows of keys.

    Modelpress-Encryption-Algorithm: AES256
    Modelpress-Encryption-Key: BASE64 of 32 random bytes
    Modelpress-Encryption-Key-SHA256: BASE64 of their SHA-256
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
from collections.abc import Iterable
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.errors import CustomerKeyNotApplicable, CustomerKeyRequired, InvalidCustomerKey
from app.models import Artifact, ArtifactFile, CustomerKeyCheck
from app.storage import Storage
from app.storage.customer import KEY, CustomerKey

ALGORITHM, NAME, SHA256 = HEADERS = ("Modelpress-Encryption-Algorithm", "Modelpress-Encryption-Key", "Modelpress-Encryption-Key-SHA256")
_AES = "AES256"
_AT_ONCE = 500  # ids of one query


def headers_of(key: bytes) -> dict[str, str]:
    """Those that bring a key."""
    return dict(zip(HEADERS, (_AES, base64.b64encode(key).decode(), base64.b64encode(hashlib.sha256(key).digest()).decode()), strict=True))


def new_line() -> str:
    """A new key as its file's line."""
    return base64.b64encode(os.urandom(KEY)).decode()


def read(path: Path) -> bytes:
    """The key of a file: 32 bytes in base64.

    Raises:
        InvalidCustomerKey: others may read the file, or it is none. It does not tell what stands there.
    """
    if path.stat().st_mode & 0o077:
        raise InvalidCustomerKey(f"others may read {path}: chmod 600 it, and replace the key if they may have")
    try:
        key = base64.b64decode(path.read_text().strip(), validate=True)
    except ValueError:
        key = b""
    if len(key) != KEY:
        raise InvalidCustomerKey(f"{path} is no key: {KEY} bytes in base64; `modelpress encryption new-customer-key` prints one")
    return key


def parse(algorithm: str | None, key: str | None, sha256: str | None) -> bytes | None:
    """The key of three headers; None where there are none. What stands there is never told.

    Raises:
        InvalidCustomerKey.
    """
    if algorithm is key is sha256 is None:
        return None
    if algorithm != _AES:
        raise InvalidCustomerKey(f"{ALGORITHM} is {_AES}, and comes with {NAME} and {SHA256}")
    found, digest = _bytes(NAME, key), _bytes(SHA256, sha256)
    if not hmac.compare_digest(hashlib.sha256(found).digest(), digest):
        raise InvalidCustomerKey(f"{SHA256} is not the SHA-256 of {NAME}: the key was changed on its way")
    return found


def _bytes(header: str, text: str | None) -> bytes:
    try:
        found = base64.b64decode(text or "", validate=True)
    except binascii.Error:
        found = b""
    if len(found) != KEY:
        raise InvalidCustomerKey(f"{header} has {KEY} bytes in base64, {4 * -(-KEY // 3)} characters; what was sent has not")
    return found


def new(key: bytes | None) -> CustomerKey | None:
    """For something new that is to be stored under the key."""
    return None if key is None else CustomerKey.new(key)


def row(key: CustomerKey) -> CustomerKeyCheck:
    return CustomerKeyCheck(id=key.ident, value=key.check)


def known(s: Session, idents: Iterable[str]) -> dict[str, CustomerKey]:
    """By id, without what opens them."""
    wanted = sorted(set(idents))
    parts = (wanted[i : i + _AT_ONCE] for i in range(0, len(wanted), _AT_ONCE))
    return {c.id: CustomerKey(c.id, c.value) for part in parts for c in s.scalars(select(CustomerKeyCheck).where(CustomerKeyCheck.id.in_(part)))}


def ring(s: Session, key: bytes | None, files: Iterable[ArtifactFile]) -> dict[str, CustomerKey]:
    """SHA-256 -> what opens it, of those of the files that are stored under a customer's key.

    Raises:
        CustomerKeyRequired, WrongCustomerKey.
    """
    under = {f.sha256: f.customer_key for f in files if f.customer_key}
    if not under:
        return {}
    if key is None:
        raise CustomerKeyRequired(f"this is stored under a key of its uploader's own, which has to come with every request for it: {', '.join(HEADERS)}")
    opened = {ident: found.opened(key) for ident, found in known(s, under.values()).items()}
    return {sha256: opened[ident] for sha256, ident in under.items()}


def opened(s: Session, storage: Storage, key: bytes | None, artifact: Artifact) -> Storage:
    """The store as the artifact's owner reads it.

    Raises:
        CustomerKeyRequired, WrongCustomerKey; CustomerKeyNotApplicable: a key came with what is under none.
    """
    found = ring(s, key, artifact.files)
    if key is not None and not found:
        raise CustomerKeyNotApplicable(f"artifact {artifact.id} is not stored under a customer's key; leave {', '.join(HEADERS)} out")
    return storage.of(artifact.owner).under(ring=found)


def held(s: Session, key: bytes | None, ident: str | None) -> CustomerKey | None:
    """What an upload or a job is under.

    Raises:
        CustomerKeyRequired, WrongCustomerKey, CustomerKeyNotApplicable.
    """
    if ident is None:
        if key is not None:
            raise CustomerKeyNotApplicable(f"this was begun without a customer's key; leave {', '.join(HEADERS)} out")
        return None
    if key is None:
        raise CustomerKeyRequired(f"this was begun under a key of your own, which has to come with every request for it: {', '.join(HEADERS)}")
    return known(s, [ident])[ident].opened(key)
