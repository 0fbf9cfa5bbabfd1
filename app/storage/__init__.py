"""Bytes in storage, through obstore: a folder, or a bucket of S3.

    blobs/<aa>/<sha256>          content-addressed, shared, never changed once there
    sealed/<aa>/<HMAC>           the same of one owner, encrypted (`app.storage.vault`), where there is a master key
    keyed/<aa>/<id>/<HMAC>       the same of one upload or result, encrypted under its uploader's own key (`app.storage.customer`)
    tmp/uploads/<id>             an upload on its way
    tmp/<job>/<fence>/...        what a worker hands to the sign process

Wherever a name is asked for, 64 hex digits mean that blob and anything else is a key. An object appears whole or not at all: what breaks off leaves
nothing behind, unless the process is killed, and then `drop_unfinished` clears up.

A blob's place takes nothing that has not been hashed: bytes are written to `tmp/`, or are in memory, until their digest is known. Then an object is
moved there within the store: a folder renames it, S3 copies it on its own side and deletes it (it has no rename), above 5 GiB in parts. An upload straight
to the address that was announced would need no copy, but could put wrong bytes there, over right ones.

Raises of every method: `StorageFull` when it is, `FileNotFoundError` for a name that is not there, `Unavailable` when a bucket does not answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from copy import copy
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol, Self, TypeVar

import obstore
from obstore.exceptions import BaseError

from app.config import settings
from app.errors import EncryptionKeyMissing, StorageDamaged, WrongBytes
from app.storage.ahead import in_order, in_order_async
from app.storage.bucket import Bucket
from app.storage import customer
from app.storage.cipher import Opening, Sealing, plain_size, sealed_size
from app.storage.customer import CustomerKey, is_keyed
from app.storage.folder import Folder
from app.storage.masters import Masters
from app.storage.vault import ENDING, Vault, is_sealed

BATCH = 4 << 20  # bytes; how much is read and hashed at a time
PARTS = 2  # parts under way beside the one being filled
_BLOB = re.compile(r"[0-9a-f]{64}")
T = TypeVar("T")


class Hash(Protocol):
    def update(self, data: bytes) -> None: ...

    def hexdigest(self) -> str: ...


class Unhashed:
    """For bytes whose digest is known, or is computed elsewhere."""

    def update(self, data: bytes) -> None: ...

    def hexdigest(self) -> str:
        return ""


class Stat(NamedTuple):
    """`modified` is seconds since the epoch; `tag` changes whenever the bytes are written anew."""

    key: str
    size: int
    modified: float
    tag: str | None


def blob_key(sha256: str) -> str:
    return f"blobs/{sha256[:2]}/{sha256}"


class Storage:
    """Args:
    url: `file:///folder` or `s3://bucket/prefix`. Default: the settings'.
    masters: with which what is written is encrypted. Default: the settings', which may be none.

    Sizes and ranges are those of the plain bytes, and digests are of them. Blobs are encrypted for an owner: `of` says for whom. What was stored before there was a
    master key is read as it is.
    """

    owner: str | None = None
    key: CustomerKey | None = None
    ring: Mapping[str, CustomerKey] = MappingProxyType({})

    def __init__(self, url: str | None = None, masters: Masters | None = None):
        url = url or settings().store
        kind = {"file": Folder, "s3": Bucket}.get(url.partition("://")[0])
        if kind is None:
            raise ValueError(f"MODELPRESS_STORAGE_URL is {url!r}; it is file:///FOLDER or s3://BUCKET/PREFIX")
        self.place = kind(url)
        self.store = self.place.store
        masters = masters or Masters.configured()
        self.vault = Vault(self.store, masters) if masters else None

    def of(self, owner: str) -> Self:
        """The same store, as one owner's blobs lie in it."""
        made = copy(self)
        made.owner = owner
        return made

    def under(self, key: CustomerKey | None = None, ring: Mapping[str, CustomerKey] = MappingProxyType({})) -> Self:
        """The same store, under keys of an uploader's own.

        Args:
            key: what is written, and read again, is under it. ring: SHA-256 -> the key of blobs that are under another one, or are not written here.
        """
        made = copy(self)
        made.key, made.ring = key, ring
        return made

    def customer_key(self, name: str) -> CustomerKey | None:
        """The uploader's own key that an object is under."""
        return self.ring.get(name, self.key) if not name.startswith("tmp/check/") else None

    def _paths(self, name: str) -> list[str]:
        """Where a blob or an object may be. It is written to the first one."""
        if key := self.customer_key(name):
            return [key.path(name) if _BLOB.fullmatch(name) else name + customer.ENDING]
        if not _BLOB.fullmatch(name):
            return [name + ENDING, name] if self.vault and name.startswith("tmp/") and not name.startswith("tmp/check/") else [name]
        return [self.vault.path(self.owner, name), blob_key(name)] if self.vault and self.owner is not None else [blob_key(name)]

    def _written(self, name: str) -> str:
        if self.vault and self.owner is None and _BLOB.fullmatch(name) and not self.customer_key(name):
            raise ValueError(f"blob {name} is to be encrypted, and nobody said whose it is")
        return self._paths(name)[0]

    def _first(self, name: str, ask: Callable[[str], T]) -> T:
        """What `ask` says of the first of the paths that is there."""
        *others, last = self._paths(name)
        for path in others:
            try:
                return ask(path)
            except FileNotFoundError:
                pass
        try:
            return ask(last)
        except FileNotFoundError:
            self._check_key(name)
            raise

    def _check_key(self, name: str) -> None:
        """Of a blob that is missing. Raises:
        EncryptionKeyMissing: this store is encrypted, and there is no master key here.
        """
        if self.vault is None and _BLOB.fullmatch(name) and not self.customer_key(name):
            try:
                obstore.head(self.store, "keys/names")
            except FileNotFoundError:
                return
            raise EncryptionKeyMissing("the store is encrypted, and this process has no master key: set MODELPRESS_MASTER_KEY_FILE")

    def put(self, key: str, data: Iterable[bytes], size: int | None = None) -> tuple[int, str]:
        """Write the pieces of `data` one after the other; returns size and SHA-256. `size`, where it is known, chooses how many parts it takes: S3 has
        room for 80 GB otherwise."""
        digest, written = hashlib.sha256(), 0

        def hashed() -> Iterator[bytes]:
            nonlocal written
            for piece in data:
                digest.update(piece)
                written += len(piece)
                yield piece

        path = self._written(key)
        with self.place.errors():
            if own := self.customer_key(key):
                self._put(path, _sealed(own.new_object(), hashed()), None if size is None else sealed_size(size))
            elif not is_sealed(path):
                self._put(path, hashed(), size)
            else:
                before = self.vault.ident(path)
                sealing, ident = self.vault.new()
                try:
                    self._put(path, _sealed(sealing, hashed()), None if size is None else sealed_size(size))
                except BaseException:
                    self.vault.discard(ident)
                    raise
                self.vault.forget(path)
                self.vault.discard(before)
        return written, digest.hexdigest()

    def _put(self, path: str, data: Iterator[bytes], size: int | None) -> None:
        part = self.place.part(size or 0)
        obstore.put(self.store, path, data, use_multipart=size is None or size > part, chunk_size=part, max_concurrency=PARTS)

    def put_file(self, key: str, path: Path, advance: Callable[[int], None] = lambda _: None) -> tuple[int, str]:
        """Write a file; returns size and SHA-256 of what was written. `advance` is told of every batch; what it raises leaves nothing behind."""

        def batches() -> Iterator[bytes]:
            with path.open("rb") as f:
                while batch := f.read(BATCH):
                    yield batch
                    advance(len(batch))

        return self.put(key, batches(), path.stat().st_size)

    async def put_stream(self, key: str, data: AsyncIterator[bytes], size: int | None = None, digest: Hash | None = None) -> tuple[int, str]:
        """`put` of what arrives by and by. Hashing and writing overlap, neither on the event loop; whatever `data` raises leaves nothing behind.
        `digest`: what is fed in the place of `hashlib.sha256()`."""
        digest, written = digest or hashlib.sha256(), 0
        path = self._written(key)
        own = self.customer_key(key)
        part = self.place.part(sealed_size(size or 0) if own or is_sealed(path) else size or 0)
        with self.place.errors():
            sealing, ident = (own.new_object(), None) if own else await asyncio.to_thread(self.vault.new) if is_sealed(path) else (None, None)

            async def passed(batch: bytes) -> None:
                await writer.write(await asyncio.to_thread(sealing.update, batch) if sealing else batch)

            try:
                async with obstore.open_writer_async(self.store, path, buffer_size=part, max_concurrency=PARTS) as writer:
                    if sealing:
                        await writer.write(sealing.head)
                    async for batch in _batches(data):
                        await asyncio.gather(asyncio.to_thread(digest.update, batch), passed(batch))
                        written += len(batch)
                    if sealing:
                        await writer.write(sealing.finish())
            except BaseException:
                if ident:
                    await asyncio.to_thread(self.vault.discard, ident)
                raise
        return written, digest.hexdigest()

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """Bytes `start` to `end` (not included) in memory; the whole object by default."""
        with self.place.errors():
            if key := self.customer_key(name):
                return self._open_keyed(key, self._paths(name)[0], start, end)
            return self._first(name, partial(self._read, start=start, end=end))

    def _open_keyed(self, key: CustomerKey, path: str, start: int, end: int | None) -> bytes:
        """Bytes that do not open are read once more."""
        try:
            return self._opened(key.opening(self.store, path), path, start, end)
        except WrongBytes:
            key.forget(path)
            return self._opened(key.opening(self.store, path), path, start, end)

    def _opened(self, opening: Opening, path: str, start: int, end: int | None) -> bytes:
        stop = opening.size if end is None else min(end, opening.size)
        low, high = opening.span(start, stop)
        return opening.open(obstore.get_range(self.store, path, start=low, end=high).to_bytes(), start, stop)

    def _read(self, path: str, start: int, end: int | None) -> bytes:
        if is_sealed(path):
            return self._open(path, start, end)
        if end is None:
            return obstore.get(self.store, path).bytes().to_bytes()[start:]
        return obstore.get_range(self.store, path, start=start, end=end).to_bytes() if end > start else b""

    def _open(self, path: str, start: int, end: int | None) -> bytes:
        """The same of an encrypted object. One that does not open may have been written anew, under another data key: it is looked at once more."""
        for anew in (False, True):
            opening = self.vault.opening(path, anew)
            try:
                return self._opened(opening, path, start, end)
            except FileNotFoundError:
                self.vault.forget(path)
                raise
            except (StorageDamaged, BaseError):
                if anew:
                    self.vault.forget(path)
                    raise
        raise AssertionError

    async def read_async(self, name: str, start: int, end: int) -> bytes:
        """`read`, off the event loop."""
        if self.vault or self.customer_key(name):
            return await asyncio.to_thread(self.read, name, start, end)
        with self.place.errors():
            return (await obstore.get_range_async(self.store, self._paths(name)[0], start=start, end=end)).to_bytes() if end > start else b""

    def stream(self, name: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The same bytes, a batch at a time; the next ones are fetched meanwhile."""
        end = self.stat(name).size if end is None else end
        return in_order(partial(self.read, name), start, end, BATCH, self.place.ahead)

    def stream_async(self, name: str, start: int, end: int, step: int | None = None) -> AsyncIterator[bytes]:
        """`stream` for a download, of which there are many: in smaller pieces, one of them ahead. `step`: bytes of a piece."""
        return in_order_async(partial(self.read_async, name), start, end, step or self.place.download, 1)

    def get_file(self, sha256: str, path: Path, advance: Callable[[int], None] = lambda _: None) -> int:
        """Copy a blob to `path`, hashing what is written; returns the size. `path` must be new, and stays only when the digest is right.
        `advance` is told of every batch, and may raise to break off.

        Raises:
            StorageDamaged: the blob is gone or is no longer what it was.
            OSError: of the disk that `path` is on.
        """
        digest, size = hashlib.sha256(), 0
        try:
            with path.open("xb") as f:
                for batch in self.stream(sha256):
                    digest.update(batch)
                    size += f.write(batch)
                    advance(len(batch))
            if digest.hexdigest() != sha256:
                raise WrongBytes(f"blob {sha256} has other bytes than it was stored with")
        except FileNotFoundError:
            path.unlink(missing_ok=True)
            raise StorageDamaged(f"blob {sha256} is missing from storage") from None
        except BaseException as e:
            if not isinstance(e, FileExistsError):
                path.unlink(missing_ok=True)
            raise
        return size

    def promote(self, key: str, sha256: str) -> None:
        """Turn an object whose digest the caller has computed into a blob, at once. A blob that is there already is replaced by the same bytes.

        The caller has written the blob's row before (`app.blobs.hold`), or a collection under way could take it.
        """
        with self.place.errors():
            self._first(key, partial(self._promote, sha256=sha256))

    def _promote(self, path: str, sha256: str) -> None:
        if key := self.customer_key(sha256):
            return self.place.move(path, key.path(sha256))
        if not is_sealed(path):
            return self.place.move(path, blob_key(sha256))
        to = self._written(sha256)
        before = self.vault.ident(to)
        self.place.move(path, to)
        for moved in (path, to):
            self.vault.forget(moved)
        self.vault.discard(before)

    def exists(self, name: str) -> bool:
        try:
            self.stat(name)
        except FileNotFoundError:
            return False
        return True

    def stat(self, name: str) -> Stat:
        with self.place.errors():
            return self._first(name, lambda path: _stat(obstore.head(self.store, path)))

    async def stat_async(self, name: str) -> Stat:
        if self.vault or self.customer_key(name):
            return await asyncio.to_thread(self.stat, name)
        with self.place.errors():
            try:
                return _stat(await obstore.head_async(self.store, self._paths(name)[0]))
            except FileNotFoundError:
                await asyncio.to_thread(self._check_key, name)
                raise

    def list(self, prefix: str) -> Iterator[Stat]:
        """Every object below `prefix`, a folder; in no order."""
        with self.place.errors():
            for page in obstore.list(self.store, prefix=prefix):
                yield from map(_listed, page)

    def _left(self, name: str) -> list[str]:
        """Where an object may be that is to go. What is on its way under a customer's key goes without the key, too."""
        return self._paths(name) + [name + customer.ENDING] * (name.startswith("tmp/") and not self.customer_key(name))

    def delete(self, *names: str) -> None:
        """Those that are there; of encrypted ones their data keys, too."""
        with self.place.errors():
            paths = [path for n in names for path in self._left(n)]
            idents = {path: self.vault.ident(path) for path in paths if is_sealed(path)} if self.vault else {}
            self.place.delete(paths)
            for path, ident in idents.items():
                self.vault.forget(path)
                self.vault.discard(ident)

    def delete_all(self, prefix: str) -> None:
        """Everything below `prefix`, a folder."""
        self.delete(*(found.key for found in self.list(prefix)))

    def drop_unfinished(self, age: float) -> int:
        """Delete what a killed process left half written more than `age` seconds ago; returns how many."""
        return self.place.drop_unfinished(age)

    def check(self) -> None:
        """Raises whatever storage raises when it cannot be written to and read from, or what is in it cannot be decrypted; within seconds."""
        key = f"tmp/check/{os.getpid()}"
        with self.place.errors():
            obstore.put(self.place.prompt, key, b"check")
            obstore.get(self.place.prompt, key).bytes()
            obstore.delete(self.place.prompt, key)
            if self.vault:
                self.vault.check()
            else:
                self._check_key("0" * 64)


async def _batches(data: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in pieces of at least BATCH, the last one excepted."""
    held = bytearray()
    async for piece in data:
        held += piece
        if len(held) >= BATCH:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)


def _sealed(sealing: Sealing, data: Iterable[bytes]) -> Iterator[bytes]:
    yield sealing.head
    for piece in data:
        if done := sealing.update(piece):
            yield done
    yield sealing.finish()


def _listed(meta) -> Stat:
    """Of what may be damaged, too: it is to be found, and to be deleted."""
    try:
        return _stat(meta)
    except StorageDamaged:
        return _stat(meta | {"size": sealed_size(0)})


def _stat(meta) -> Stat:
    size = plain_size(meta["size"]) if is_sealed(meta["path"]) or is_keyed(meta["path"]) else meta["size"]
    return Stat(meta["path"].removesuffix(ENDING).removesuffix(customer.ENDING), size, meta["last_modified"].timestamp(), meta["e_tag"])
