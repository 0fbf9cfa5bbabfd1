"""Keys of the uploaders' own: what is stored under one opens with it alone, and the service keeps no copy of it.

    root      = HKDF-SHA256(key, salt = id, info = "modelpress customer root")          id: 16 random bytes for each upload and each result
    check     = HKDF-SHA256(root, info = "modelpress customer check")                   stored beside the id: it tells a wrong key, and opens nothing
    data key  = HKDF-SHA256(root, salt = the object's id, info = "modelpress customer data")

    keyed/<aa>/<id>/<HMAC-SHA256(check, SHA-256 in hex)>      a blob; aa: the first byte of the id
    tmp/.../<name>.keyed                                      an object on its way

Objects are those of `app.storage.cipher`. A data key is derived from the object's own random id and lies in no envelope, so a master key opens none of this. As every id is new, nothing
is shared between uploads, not even between two of the same bytes under the same key.
"""

from __future__ import annotations

import hashlib
import hmac
import os

import obstore
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from app.errors import CustomerKeyRequired, WrongCustomerKey
from app.storage.cipher import HEADER, Opening, Sealing, ident_of

KEY = 32  # bytes
ENDING = ".keyed"
FOLDER = "keyed/"


def is_keyed(path: str) -> bool:
    return path.startswith(FOLDER) or path.endswith(ENDING)


def _derived(secret: bytes, salt: bytes | None, info: bytes) -> bytes:
    return HKDF(SHA256(), KEY, salt, info).derive(secret)


class CustomerKey:
    """One upload's or result's, with the key (`root`) or, for who only looks after objects, without it.

    Args:
        ident: 32 hex digits. check: 64 hex digits.
    """

    def __init__(self, ident: str, check: str, root: bytes | None = None):
        self.ident, self.check, self.root = ident, check, root
        self._openings: dict[str, Opening] = {}  # of blobs, which are never written again

    @classmethod
    def new(cls, key: bytes) -> CustomerKey:
        return cls._of(os.urandom(16).hex(), key)

    @classmethod
    def _of(cls, ident: str, key: bytes) -> CustomerKey:
        return cls.rooted(ident, _derived(key, bytes.fromhex(ident), b"modelpress customer root"))

    @classmethod
    def rooted(cls, ident: str, root: bytes) -> CustomerKey:
        """Of the one id's root, which tells nothing of the key."""
        return cls(ident, _derived(root, None, b"modelpress customer check").hex(), root)

    def opened(self, key: bytes) -> CustomerKey:
        """The same with its root.

        Raises:
            WrongCustomerKey.
        """
        made = self._of(self.ident, key)
        if not hmac.compare_digest(made.check, self.check):
            raise WrongCustomerKey("the key that was sent is not the one that this was uploaded or made under")
        return made

    def path(self, sha256: str) -> str:
        """Where a blob lies."""
        return f"{FOLDER}{self.ident[:2]}/{self.ident}/{hmac.digest(bytes.fromhex(self.check), sha256.encode(), hashlib.sha256).hex()}"

    def forget(self, path: str) -> None:
        self._openings.pop(path, None)

    def new_object(self) -> Sealing:
        ident = os.urandom(16)
        return Sealing(self._data_key(ident), ident)

    def _data_key(self, ident: bytes) -> bytes:
        if self.root is None:
            raise CustomerKeyRequired("this is stored under a key of its uploader's own, which has to come with every request for it")
        return _derived(self.root, ident, b"modelpress customer data")

    def opening(self, store, path: str) -> Opening:
        """Raises: what obstore raises; CustomerKeyRequired; WrongBytes."""
        if path in self._openings:
            return self._openings[path]
        size = obstore.head(store, path)["size"]
        head = obstore.get_range(store, path, start=0, end=min(HEADER, size)).to_bytes() if size else b""
        made = Opening(self._data_key(ident_of(head)), head, size)
        if path.startswith(FOLDER):
            self._openings[path] = made
        return made
