"""Bytes in storage, through obstore: a folder, or a bucket of S3.

    blobs/<aa>/<sha256>          content-addressed, shared, never changed once there
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
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import obstore

from app.config import settings
from app.errors import StorageDamaged, WrongBytes
from app.storage.ahead import in_order, in_order_async
from app.storage.bucket import Bucket
from app.storage.folder import Folder

BATCH = 4 << 20  # bytes; how much is read and hashed at a time
PARTS = 2  # parts under way beside the one being filled
_BLOB = re.compile(r"[0-9a-f]{64}")


class Hash(Protocol):
    def update(self, data: bytes) -> None: ...

    def hexdigest(self) -> str: ...


class Stat(NamedTuple):
    """`modified` is seconds since the epoch; `tag` changes whenever the bytes are written anew."""

    key: str
    size: int
    modified: float
    tag: str | None


def blob_key(sha256: str) -> str:
    return f"blobs/{sha256[:2]}/{sha256}"


def _key(name: str) -> str:
    return blob_key(name) if _BLOB.fullmatch(name) else name


class Storage:
    """Args: url: `file:///folder` or `s3://bucket/prefix`. Default: the settings'."""

    def __init__(self, url: str | None = None):
        url = url or settings().store
        kind = {"file": Folder, "s3": Bucket}.get(url.partition("://")[0])
        if kind is None:
            raise ValueError(f"MODELPRESS_STORAGE_URL is {url!r}; it is file:///FOLDER or s3://BUCKET/PREFIX")
        self.place = kind(url)
        self.store = self.place.store

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

        part = self.place.part(size or 0)
        with self.place.errors():
            obstore.put(self.store, key, hashed(), use_multipart=size is None or size > part, chunk_size=part, max_concurrency=PARTS)
        return written, digest.hexdigest()

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
        with self.place.errors():
            async with obstore.open_writer_async(self.store, key, buffer_size=self.place.part(size or 0), max_concurrency=PARTS) as writer:
                async for batch in _batches(data):
                    await asyncio.gather(asyncio.to_thread(digest.update, batch), writer.write(batch))
                    written += len(batch)
        return written, digest.hexdigest()

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """Bytes `start` to `end` (not included) in memory; the whole object by default."""
        with self.place.errors():
            if end is None:
                return obstore.get(self.store, _key(name)).bytes().to_bytes()[start:]
            return obstore.get_range(self.store, _key(name), start=start, end=end).to_bytes() if end > start else b""

    async def read_async(self, name: str, start: int, end: int) -> bytes:
        """`read`, off the event loop."""
        with self.place.errors():
            return (await obstore.get_range_async(self.store, _key(name), start=start, end=end)).to_bytes() if end > start else b""

    def stream(self, name: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The same bytes, a batch at a time; the next ones are fetched meanwhile."""
        end = self.stat(name).size if end is None else end
        return in_order(partial(self.read, name), start, end, BATCH, self.place.ahead)

    def stream_async(self, name: str, start: int, end: int) -> AsyncIterator[bytes]:
        """`stream` for a download, of which there are many: in smaller pieces, one of them ahead."""
        return in_order_async(partial(self.read_async, name), start, end, self.place.download, 1)

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
            self.place.move(key, blob_key(sha256))

    def exists(self, name: str) -> bool:
        try:
            self.stat(name)
        except FileNotFoundError:
            return False
        return True

    def stat(self, name: str) -> Stat:
        with self.place.errors():
            return _stat(obstore.head(self.store, _key(name)))

    async def stat_async(self, name: str) -> Stat:
        with self.place.errors():
            return _stat(await obstore.head_async(self.store, _key(name)))

    def list(self, prefix: str) -> Iterator[Stat]:
        """Every object below `prefix`, a folder; in no order."""
        with self.place.errors():
            for page in obstore.list(self.store, prefix=prefix):
                yield from map(_stat, page)

    def delete(self, *names: str) -> None:
        """Those that are there."""
        with self.place.errors():
            self.place.delete([_key(n) for n in names])

    def delete_all(self, prefix: str) -> None:
        """Everything below `prefix`, a folder."""
        self.delete(*(found.key for found in self.list(prefix)))

    def drop_unfinished(self, age: float) -> int:
        """Delete what a killed process left half written more than `age` seconds ago; returns how many."""
        return self.place.drop_unfinished(age)

    def check(self) -> None:
        """Raises whatever storage raises when it cannot be written to and read from; within seconds."""
        key = f"tmp/check/{os.getpid()}"
        with self.place.errors():
            obstore.put(self.place.prompt, key, b"check")
            obstore.get(self.place.prompt, key).bytes()
            obstore.delete(self.place.prompt, key)


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


def _stat(meta) -> Stat:
    return Stat(meta["path"], meta["size"], meta["last_modified"].timestamp(), meta["e_tag"])
