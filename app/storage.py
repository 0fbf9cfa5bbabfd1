"""Bytes in storage, through obstore: a folder now, S3 by another URL.

    blobs/<aa>/<sha256>          content-addressed, shared, never changed once there
    tmp/uploads/<id>             an upload on its way
    tmp/<job>/<fence>/...        what a worker hands to the sign process

Wherever a name is asked for, 64 hex digits mean that blob and anything else is a key. An object appears whole or not at all: what breaks off leaves
nothing behind, unless the process is killed, and then `drop_unfinished` clears up.

Raises of every method: `StorageFull` when the disk is, `FileNotFoundError` for a name that is not there.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import obstore
from obstore.exceptions import GenericError
from obstore.store import LocalStore, from_url

from app.config import settings
from app.errors import StorageDamaged, StorageFull

BATCH = 4 << 20  # bytes; how much is written, read and hashed at a time
PARTS = 2  # batches under way beside the one being filled
_BLOB = re.compile(r"[0-9a-f]{64}")
_FULL = re.compile(r"\(os error (?:27|28|122)\)")  # EFBIG, ENOSPC, EDQUOT
_UNFINISHED = re.compile(r"#\d+$")  # how a LocalStore names what is not whole yet; it lists no such file


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


@contextmanager
def _translated():
    try:
        yield
    except (GenericError, OSError) as e:
        if _FULL.search(str(e)):
            raise StorageFull("the storage has no room for it; delete what is not needed, or try again later") from e
        raise


class Storage:
    """Args: url: `file:///folder`, or another URL that obstore knows. Default: the settings'."""

    def __init__(self, url: str | None = None):
        url = url or settings().store
        if url.startswith("file://"):
            folder = Path(url.removeprefix("file://"))
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.store = LocalStore(folder, automatic_cleanup=True)
        else:
            self.store = from_url(url)

    def put(self, key: str, data: Iterable[bytes]) -> tuple[int, str]:
        """Write the pieces of `data` one after the other; returns size and SHA-256."""
        digest, size = hashlib.sha256(), 0

        def hashed() -> Iterator[bytes]:
            nonlocal size
            for piece in data:
                digest.update(piece)
                size += len(piece)
                yield piece

        with _translated():
            obstore.put(self.store, key, hashed(), chunk_size=BATCH, max_concurrency=PARTS)
        return size, digest.hexdigest()

    def put_file(self, key: str, path: Path, advance: Callable[[int], None] = lambda _: None) -> tuple[int, str]:
        """Write a file; returns size and SHA-256 of what was written. `advance` is told of every batch; what it raises leaves nothing behind."""

        def batches() -> Iterator[bytes]:
            with path.open("rb") as f:
                while batch := f.read(BATCH):
                    yield batch
                    advance(len(batch))

        return self.put(key, batches())

    async def put_stream(self, key: str, data: AsyncIterator[bytes]) -> tuple[int, str]:
        """`put` of what arrives by and by. Hashing and writing overlap, neither on the event loop; whatever `data` raises leaves nothing behind."""
        digest, size = hashlib.sha256(), 0
        with _translated():
            async with obstore.open_writer_async(self.store, key, buffer_size=BATCH, max_concurrency=PARTS) as writer:
                async for batch in _batches(data):
                    await asyncio.gather(asyncio.to_thread(digest.update, batch), writer.write(batch))
                    size += len(batch)
        return size, digest.hexdigest()

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """Bytes `start` to `end` (not included) in memory; the whole object by default."""
        if end is None:
            return obstore.get(self.store, _key(name)).bytes().to_bytes()[start:]
        return obstore.get_range(self.store, _key(name), start=start, end=end).to_bytes() if end > start else b""

    async def read_async(self, name: str, start: int, end: int) -> bytes:
        """`read`, off the event loop."""
        return (await obstore.get_range_async(self.store, _key(name), start=start, end=end)).to_bytes() if end > start else b""

    def stream(self, name: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The same bytes, a batch at a time."""
        end = self.stat(name).size if end is None else end
        for at in range(start, end, BATCH):
            yield self.read(name, at, min(at + BATCH, end))

    def open(self, name: str):
        """A readable, seekable file object (buffered; its reads return buffers)."""
        return obstore.open_reader(self.store, _key(name), buffer_size=BATCH)

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
                raise StorageDamaged(f"blob {sha256} has other bytes than it was stored with")
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
        with _translated():
            obstore.rename(self.store, key, blob_key(sha256))

    def exists(self, name: str) -> bool:
        try:
            self.stat(name)
        except FileNotFoundError:
            return False
        return True

    def stat(self, name: str) -> Stat:
        return _stat(obstore.head(self.store, _key(name)))

    async def stat_async(self, name: str) -> Stat:
        return _stat(await obstore.head_async(self.store, _key(name)))

    def list(self, prefix: str) -> Iterator[Stat]:
        """Every object below `prefix`, a folder; in no order."""
        for page in obstore.list(self.store, prefix=prefix):
            yield from map(_stat, page)

    def delete(self, *names: str) -> None:
        """Those that are there."""
        for name in names:
            try:
                obstore.delete(self.store, _key(name))
            except FileNotFoundError:
                pass

    def delete_all(self, prefix: str) -> None:
        """Everything below `prefix`, a folder."""
        self.delete(*(found.key for found in self.list(prefix)))

    def drop_unfinished(self, age: float) -> int:
        """Delete what a killed process left half written more than `age` seconds ago; returns how many. (S3 does it by a rule of the bucket.)"""
        if not isinstance(self.store, LocalStore):
            return 0
        old = [p for p in Path(self.store.prefix).rglob("*#*") if _UNFINISHED.search(p.name) and p.is_file() and p.stat().st_mtime < time.time() - age]
        for path in old:
            path.unlink(missing_ok=True)
        return len(old)

    def check(self) -> None:
        """Raises whatever storage raises when it cannot be written to and read from."""
        key = f"tmp/check/{os.getpid()}"
        self.put(key, [b"check"])
        self.read(key)
        self.delete(key)


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
