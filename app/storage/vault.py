"""The keys of a store's encrypted objects: data keys in their envelopes, and the names under which an owner's blobs lie.

    sealed/<aa>/<HMAC>         an encrypted blob: aa is the first byte of its SHA-256, HMAC-SHA256(secret of names, owner, SHA-256) the rest of its name
    tmp/.../<name>.sealed      an encrypted object on its way
    keys/<id>, keys/names      envelopes (`app.storage.masters`)

The same bytes of two owners are two objects under two data keys: nobody learns from the store, and no owner from the service, that another one has them.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotSupportedError

from app.errors import StorageDamaged, WrongBytes
from app.storage.cipher import HEADER, Opening, Sealing, ident_of
from app.storage.masters import Masters

ENDING = ".sealed"
_NAMES = "keys/names"
_MOST = 4096  # data keys kept in memory
_READERS = 8  # headers read at a time
log = logging.getLogger(__name__)


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

    def drop_orphans(self, age: float) -> int:
        """Delete envelopes older than `age` seconds that no object needs: a process died between writing an envelope and its object, or after deleting the object. Returns how many.

        Objects' headers are read only where there are more envelopes than objects. What is on its way is looked at first, since it moves to its place and not back.
        Where a header cannot be read nothing goes: it may be put right, and its key is not known meanwhile.
        """
        written = {meta["path"].rsplit("/", 1)[1]: meta["last_modified"].timestamp() for meta in self._list("keys")}
        written.pop("names", None)
        old = {ident for ident, at in written.items() if at < time.time() - age}
        objects = [meta["path"] for prefix in ("tmp", "sealed") for meta in self._list(prefix) if is_sealed(meta["path"])]
        if not old or len(written) <= len(objects):
            return 0
        try:
            with ThreadPoolExecutor(_READERS) as readers:
                needed = {ident.hex() for ident in readers.map(self._needed, objects) if ident}
        except (WrongBytes, BaseError) as e:
            log.warning("%d data keys may be left over, and an encrypted object does not begin as one: %s", len(written) - len(objects), e)
            return 0
        for ident in (orphans := old - needed):
            self.discard(bytes.fromhex(ident))
        return len(orphans)

    def _list(self, prefix: str) -> Iterator[dict]:
        for page in obstore.list(self.store, prefix=prefix):
            yield from page

    def _needed(self, path: str) -> bytes | None:
        """The data key's id; None of an object that is gone by now."""
        try:
            return ident_of(obstore.get_range(self.store, path, start=0, end=HEADER).to_bytes())
        except FileNotFoundError:
            return None

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
