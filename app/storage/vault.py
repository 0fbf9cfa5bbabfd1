"""The keys of a store's encrypted objects: data keys in their envelopes, and the names under which an owner's blobs lie.

    sealed/<aa>/<HMAC>         an encrypted blob: aa is the first byte of its SHA-256, HMAC-SHA256(secret of names, owner, SHA-256) the rest of its name
    tmp/.../<name>.sealed      an encrypted object on its way
    keys/<id>, keys/names      envelopes (`app.storage.masters`)

The same bytes of two owners are two objects under two data keys: nobody learns from the store, and no owner from the service, that another one has them.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import threading
from collections import OrderedDict
from contextlib import suppress

import obstore
from obstore.exceptions import AlreadyExistsError, NotSupportedError

from app.errors import StorageDamaged
from app.storage.cipher import HEADER, Opening, Sealing, ident_of
from app.storage.masters import Masters

ENDING = ".sealed"
_NAMES = "keys/names"
_MOST = 4096  # data keys kept in memory


def is_sealed(path: str) -> bool:
    return path.startswith("sealed/") or path.endswith(ENDING)


def envelope_key(ident: bytes) -> str:
    return f"keys/{ident.hex()}"


class Vault:
    """Args: store: obstore's. Methods raise what it raises, and EncryptionKeyMissing, StorageDamaged."""

    def __init__(self, store, masters: Masters):
        self.store, self.masters = store, masters
        self._secret: bytes | None = None
        self._openings: OrderedDict[str, Opening] = OrderedDict()
        self._lock = threading.Lock()

    def path(self, owner: str, sha256: str) -> str:
        """Where an owner's blob lies."""
        if self._secret is None:
            self._secret = self._names()
        said = f"{sha256}\n{owner}".encode(errors="surrogatepass")
        return f"sealed/{sha256[:2]}/{hmac.digest(self._secret, said, hashlib.sha256).hex()}"

    def check(self) -> None:
        """Whether the master keys are those of this store."""
        self._names()

    def _names(self) -> bytes:
        """The secret of names, made by whoever needs it first."""
        with suppress(FileNotFoundError):
            return self.masters.unwrap("names", obstore.get(self.store, _NAMES).bytes().to_bytes())
        envelope = self.masters.wrap("names", os.urandom(32))
        try:
            obstore.put(self.store, _NAMES, envelope, mode="create")
        except AlreadyExistsError:
            pass
        except (NotSupportedError, NotImplementedError):  # a store without conditional writes: two first starts at once are not told apart
            obstore.put(self.store, _NAMES, envelope)
        return self.masters.unwrap("names", obstore.get(self.store, _NAMES).bytes().to_bytes())

    def new(self) -> tuple[Sealing, bytes]:
        """A new object's cipher and the id of its data key, whose envelope is written."""
        ident, key = os.urandom(16), os.urandom(32)
        obstore.put(self.store, envelope_key(ident), self.masters.wrap(ident.hex(), key))
        return Sealing(key, ident), ident

    def ident(self, path: str) -> bytes | None:
        """The id of an object's data key; None where there is no object, or none that begins as one."""
        try:
            head = obstore.get_range(self.store, path, start=0, end=HEADER).to_bytes()
            return ident_of(head)
        except Exception:  # FileNotFoundError, or an object that is shorter than a header or none of ours
            return None

    def discard(self, ident: bytes | None) -> None:
        """A data key that nothing is encrypted under any more. Without it, copies of the object that were left somewhere open no more."""
        if ident is not None:
            with suppress(FileNotFoundError):
                obstore.delete(self.store, envelope_key(ident))

    def opening(self, path: str, anew: bool = False) -> Opening:
        """`anew`: the object may have been written once more since it was last looked at."""
        with self._lock:
            found = None if anew else self._openings.get(path)
            if found is not None:
                self._openings.move_to_end(path)
                return found
        size = obstore.head(self.store, path)["size"]
        head = obstore.get_range(self.store, path, start=0, end=min(HEADER, size)).to_bytes() if size else b""
        ident = ident_of(head)
        try:
            envelope = obstore.get(self.store, envelope_key(ident)).bytes().to_bytes()
        except FileNotFoundError:
            raise StorageDamaged(f"the data key {ident.hex()} of an encrypted object is gone from storage, and the object with it") from None
        made = Opening(self.masters.unwrap(ident.hex(), envelope), head, size)
        with self._lock:
            self._openings[path] = made
            while len(self._openings) > _MOST:
                self._openings.popitem(last=False)
        return made

    def forget(self, path: str) -> None:
        with self._lock:
            self._openings.pop(path, None)

    def rewrap(self) -> tuple[int, int]:
        """Write every envelope anew that another master key than the current one has wrapped; no object is read. Returns (envelopes, how many were written)."""
        count = written = 0
        for page in obstore.list(self.store, prefix="keys"):
            for meta in page:
                envelope, ident = obstore.get(self.store, meta["path"]).bytes().to_bytes(), meta["path"].rsplit("/", 1)[1]
                count += 1
                if self.masters.wrapped_by(envelope) != self.masters.current:
                    obstore.put(self.store, meta["path"], self.masters.wrap(ident, self.masters.unwrap(ident, envelope)))
                    written += 1
        return count, written
