"""Reading blobs for whoever downloads them: every chunk is held against its digest (`app.chunks`) before a byte of it goes out.

What does not hold is read once more; when it is wrong again, everything that has the blob is put under quarantine (`app.quarantine`).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import aclosing

from starlette.concurrency import run_in_threadpool
from obstore.exceptions import BaseError
from sqlalchemy import func, update

from app.chunks import CHUNK, Chunked, expected, parted
from app.db import reading, session
from app.errors import StorageDamaged, WrongBytes
from app.models import Blob
from app.quarantine import condemn
from app.storage import Stat, Storage

PIECE = 1 << 20  # bytes handed out at a time


async def verified(storage: Storage, sha256: str, size: int, start: int, end: int) -> AsyncIterator[bytes]:
    """Bytes `start` to `end` of a blob of `size` bytes, in pieces. It holds one chunk in memory, and what storage reads ahead.

    Raises:
        StorageDamaged: before any byte of the chunk that is not what was stored.
    """
    try:
        await there(storage, sha256, size)
        first, last = start - start % CHUNK, min(size, -(-end // CHUNK) * CHUNK)
        digests = await run_in_threadpool(digests_of, storage, sha256, size, first // CHUNK, -(-last // CHUNK))
        at, held, digest = first, [], hashlib.sha256()
        async with aclosing(storage.stream_async(sha256, first, last)) as batches:
            async for batch in batches:
                for part in parted(batch, at):
                    await asyncio.to_thread(digest.update, part)
                    held.append((at, part))
                    at += len(part)
                    if at % CHUNK and at != last:
                        continue
                    if digest.digest() != digests[(at - 1) // CHUNK - first // CHUNK]:
                        await run_in_threadpool(_look_again, storage, sha256, held[0][0], at, digests[(at - 1) // CHUNK - first // CHUNK])
                    for begin, piece in held:
                        for low in range(max(start - begin, 0), min(end - begin, len(piece)), PIECE):
                            yield piece[low : min(low + PIECE, end - begin)]
                    held, digest = [], hashlib.sha256()
        if at != last:
            raise StorageDamaged(f"blob {sha256} ends after {at} bytes of {size}")
    except WrongBytes:  # encrypted ones that do not open; they were looked at twice
        await run_in_threadpool(condemn, storage, sha256, "some of its bytes are others")
        raise
    except (FileNotFoundError, BaseError) as e:
        raise StorageDamaged(f"blob {sha256} cannot be read: {type(e).__name__}") from e


def digests_of(storage: Storage, sha256: str, size: int, first: int, last: int) -> list[bytes]:
    """The digests of chunks `first` to `last` (not included). A blob of before they were kept is read through for them.

    Raises:
        StorageDamaged: such a blob is not what it was.
    """
    with reading() as s:
        found = expected(s, sha256, size, first, last)
    if found is not None:
        return found
    digest = Chunked()
    for batch in storage.stream(sha256):
        digest.update(batch)
    if digest.hexdigest() != sha256:
        condemn(storage, sha256, "some of its bytes are others")
        raise StorageDamaged(f"blob {sha256} has other bytes than it was stored with")
    chunks = digest.chunks()
    with session() as s, s.begin():
        s.execute(update(Blob).where(Blob.sha256 == sha256).values(chunks=func.coalesce(Blob.chunks, chunks)), execution_options={"synchronize_session": False})
    return [chunks[i : i + 32] for i in range(32 * first, 32 * last, 32)]


async def there(storage: Storage, sha256: str, size: int) -> Stat:
    """Raises:
    StorageDamaged: the blob is not there, or has another size than it was stored with.
    """
    try:
        found = await storage.stat_async(sha256)
    except (FileNotFoundError, BaseError) as e:
        raise StorageDamaged(f"blob {sha256} cannot be read: {type(e).__name__}") from e
    if found.size != size:
        await run_in_threadpool(condemn, storage, sha256, f"it has {found.size} bytes, and was stored with {size}")
        raise StorageDamaged(f"blob {sha256} has {found.size} bytes, and was stored with {size}")
    return found


def _look_again(storage: Storage, sha256: str, start: int, end: int, wanted: bytes) -> None:
    """Raises:
    StorageDamaged: always: what was read was wrong. Whether it is stored that way is told by reading it once more.
    """
    why = f"bytes {start} to {end - 1} are others"
    if hashlib.sha256(storage.read(sha256, start, end)).digest() != wanted:
        condemn(storage, sha256, why)
    raise StorageDamaged(f"blob {sha256} has other bytes than it was stored with: {why}")
