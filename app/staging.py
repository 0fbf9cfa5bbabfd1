"""Where the bytes of an upload lie until all of them are there, the same for every API process.

    a folder    tmp/uploads/<id>                     one file that grows; completion renames it
    S3          tmp/uploads/<id>/<offset>-<fence>    an object for each piece; completion streams them together; also a folder whose objects are encrypted

A writer that has lost its fence does no harm. In a folder it holds a lock on the file, which the kernel lets go of when the process ends, and nobody else
gets in before. In S3 it may go on, with objects of its own: at an offset that was committed, the one with the highest fence is the one that was.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from app.chunks import Chunked
from app.errors import Locked, StorageDamaged, StorageFull
from app.storage import BATCH, Storage, Unhashed
from app.storage.folder import Folder

LOCKED = "another request is writing to this upload; ask for its offset when that has ended"
_FULL = (errno.EFBIG, errno.ENOSPC, errno.EDQUOT)


def key_of(ident: str) -> str:
    return f"tmp/uploads/{ident}"


def whole_key(ident: str) -> str:
    """In S3 the one object with all bytes: a client sends them straight there (`app.direct`), or pieces are streamed together."""
    return f"{key_of(ident)}/whole"


class Hash(Protocol):
    def update(self, data: bytes) -> None: ...


class Place(Protocol):
    """An upload's bytes, open for one writer."""

    exclusive: bool
    """Whether no other writer can be alive."""

    def begin(self, offset: int, fence: int) -> None:
        """What lies beyond `offset` was never committed, and goes."""

    async def write(self, batches: AsyncIterator[bytes], *hashes: Hash) -> int:
        """Append; returns how many bytes, all of them on disk by then. What `batches` raises is raised, and then nothing may be committed."""


class Staging(Protocol):
    def create(self, ident: str) -> None: ...

    def open(self, ident: str):
        """A context with the Place. Raises `Locked`; FileNotFoundError: there are no bytes."""

    def read(self, ident: str, start: int, end: int) -> bytes: ...

    async def whole(self, ident: str, length: int, hashed: bool = False) -> tuple[str, Chunked | None]:
        """The key of one object that has all bytes, and its digests where making it has told; `hashed`: they are known. Raises `StorageDamaged`: the bytes are not there."""

    def drop(self, ident: str) -> None: ...


def staging(storage: Storage, keyed: bool = False) -> Staging:
    """`keyed`: of an upload under a key of its uploader's own, where `storage` does not say so."""
    return Files(storage) if isinstance(storage.place, Folder) and not (storage.vault or storage.key or keyed) else Pieces(storage)


class Files:
    """In a folder: a file for each upload."""

    def __init__(self, storage: Storage):
        self._storage, self._root = storage, storage.place.path

    def _path(self, ident: str) -> Path:
        return self._root / key_of(ident)

    def create(self, ident: str) -> None:
        path = self._path(ident)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _translated():
            path.open("xb").close()
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    @contextmanager
    def open(self, ident: str) -> Iterator[_OpenFile]:
        with self._path(ident).open("r+b", buffering=0) as f:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Locked(LOCKED) from None
            if not os.path.samestat(os.fstat(f.fileno()), os.stat(self._path(ident))):
                raise FileNotFoundError(self._path(ident))  # it was moved between the opening and the lock, and is a blob by now
            yield _OpenFile(f.fileno())

    def read(self, ident: str, start: int, end: int) -> bytes:
        return self._storage.read(key_of(ident), start, end)

    async def whole(self, ident: str, length: int, hashed: bool = False) -> tuple[str, Chunked | None]:
        if (size := (await self._storage.stat_async(key_of(ident))).size) != length:
            raise StorageDamaged(f"upload {ident} has {size} bytes in storage, and {length} were committed")
        return key_of(ident), None

    def drop(self, ident: str) -> None:
        self._storage.delete(key_of(ident))


class _OpenFile:
    exclusive = True

    def __init__(self, descriptor: int):
        self._descriptor, self._at = descriptor, 0

    def begin(self, offset: int, fence: int) -> None:
        if (size := os.fstat(self._descriptor).st_size) < offset:
            raise StorageDamaged(f"an upload has {size} bytes in storage, and {offset} were committed")
        os.ftruncate(self._descriptor, offset)
        self._at = offset

    async def write(self, batches: AsyncIterator[bytes], *hashes: Hash) -> int:
        start, under_way = self._at, None
        try:
            async for batch in batches:  # one is written and hashed while the next one arrives
                if under_way is not None:
                    await asyncio.shield(under_way)
                calls = [asyncio.to_thread(h.update, batch) for h in hashes]
                under_way = asyncio.gather(asyncio.to_thread(self._put, batch, self._at), *calls)
                self._at += len(batch)
            if under_way is not None:
                await asyncio.shield(under_way)
                await asyncio.to_thread(os.fdatasync, self._descriptor)
        finally:
            if under_way is not None and not under_way.done():
                await asyncio.wait([under_way])  # the descriptor is closed after this
        return self._at - start

    def _put(self, batch: bytes, at: int) -> None:
        left = memoryview(batch)
        with _translated():
            while left:
                written = os.pwrite(self._descriptor, left, at)
                left, at = left[written:], at + written


class Pieces:
    """In S3, or encrypted: an object for each piece."""

    def __init__(self, storage: Storage):
        self._storage = storage

    def create(self, ident: str) -> None:
        """There is nothing to prepare."""

    @contextmanager
    def open(self, ident: str) -> Iterator[_NewPieces]:
        yield _NewPieces(self._storage, ident)

    def _committed(self, ident: str) -> Iterator[tuple[int, str, int]]:
        """(offset, key, size) of the pieces that follow one another from the start."""
        found: dict[int, tuple[int, str, int]] = {}
        for key, size, *_ in self._storage.list(key_of(ident)):
            offset, dash, fence = key.rsplit("/", 1)[1].partition("-")
            if dash:
                found[int(offset)] = max(found.get(int(offset), (0, "", 0)), (int(fence), key, size))
        at = 0
        while at in found:
            _, key, size = found[at]
            yield at, key, size
            at += size

    def read(self, ident: str, start: int, end: int) -> bytes:
        parts = [(key, max(start - at, 0), min(end - at, size)) for at, key, size in self._committed(ident) if at < end and at + size > start]
        return b"".join(self._storage.read(*part) for part in parts)

    async def whole(self, ident: str, length: int, hashed: bool = False) -> tuple[str, Chunked | None]:
        pieces = [piece for piece in await asyncio.to_thread(lambda: [*self._committed(ident)]) if piece[0] < length]
        if len(pieces) == 1 and pieces[0][2] == length:
            return pieces[0][1], None

        async def joined() -> AsyncIterator[bytes]:
            for at, key, size in pieces:
                async for batch in self._storage.stream_async(key, 0, min(size, length - at), BATCH):
                    yield batch

        key = whole_key(ident)
        sure = hashed and (self._storage.vault or self._storage.key)  # what opens is what was written; of plain pieces reading them tells
        digest = None if sure else Chunked()
        size, _ = await self._storage.put_stream(key, joined(), length, digest or Unhashed())
        if size != length:
            raise StorageDamaged(f"upload {ident} has {size} bytes in storage, and {length} were committed")
        return key, digest

    def drop(self, ident: str) -> None:
        self._storage.delete_all(key_of(ident))


class _Together(Unhashed):
    """Several digests as one: computed while the same bytes are encrypted and written."""

    def __init__(self, hashes: tuple[Hash, ...]):
        self._hashes = hashes

    def update(self, data: bytes) -> None:
        for h in self._hashes:
            h.update(data)


class _NewPieces:
    exclusive = False

    def __init__(self, storage: Storage, ident: str):
        self._storage, self._prefix = storage, key_of(ident)
        self._at, self._fence = 0, 0

    def begin(self, offset: int, fence: int) -> None:
        self._at, self._fence = offset, fence

    async def write(self, batches: AsyncIterator[bytes], *hashes: Hash) -> int:
        first = await anext(batches, None)
        if first is None:
            return 0

        async def all_batches() -> AsyncIterator[bytes]:
            yield first
            async for batch in batches:
                yield batch

        size, _ = await self._storage.put_stream(f"{self._prefix}/{self._at:020d}-{self._fence}", all_batches(), digest=_Together(hashes))
        self._at += size
        return size


@contextmanager
def _translated():
    try:
        yield
    except OSError as e:
        if e.errno in _FULL:
            raise StorageFull("the storage has no room for it; delete what is not needed, or try again later") from e
        raise
