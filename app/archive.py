"""An artifact as one zip file that is never stored: members stored, not deflated, so that its size is known and any range of it can be made.

    [local header, name, zip64 sizes][the file's bytes] ... [central directory][zip64 end record, its locator, end record]

(APPNOTE.TXT 6.3.10.) Sizes are always written as ZIP64, dates are 1980-01-01, so the same artifact is always the same bytes.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from sqlalchemy import select, update

from app.db import reading, session
from app.models import Artifact, Blob
from app.storage import Storage
from app.verified import verified
from app.verify import SIDE_FOLDER

DATE = 0x0021  # 1980-01-01
UTF8 = 0x0800
VERSION = 45  # ZIP64
_MAX = 0xFFFFFFFF


@dataclass(frozen=True)
class Member:
    path: str
    size: int
    sha256: str
    crc32: int


@dataclass(frozen=True)
class Archive:
    """`parts` in order: bytes, or a member whose bytes stand there."""

    parts: tuple[bytes | Member, ...]
    storage: Storage

    @property
    def size(self) -> int:
        return sum(_size(p) for p in self.parts)

    @property
    def etag(self) -> str:
        return hashlib.sha256(b"".join(p if isinstance(p, bytes) else p.sha256.encode() for p in self.parts)).hexdigest()

    async def read(self, start: int, end: int) -> AsyncIterator[bytes]:
        """Bytes `start` to `end`; of a member that is damaged, never the last piece."""
        at = 0
        for part in self.parts:
            size = _size(part)
            low, high = max(start - at, 0), min(end - at, size)
            if low < high:
                if isinstance(part, bytes):
                    yield part[low:high]
                else:
                    async for piece in verified(self.storage, part.sha256, size, low, high):
                        yield piece
            at += size


def _size(part: bytes | Member) -> int:
    return len(part) if isinstance(part, bytes) else part.size


def build(members: list[Member], storage: Storage) -> Archive:
    parts: list[bytes | Member] = []
    directory, at = b"", 0
    for m in members:
        name = m.path.encode()
        sizes = struct.pack("<HHQQ", 1, 16, m.size, m.size)
        header = struct.pack("<4s5H3I2H", b"PK\x03\x04", VERSION, UTF8, 0, 0, DATE, m.crc32, _MAX, _MAX, len(name), len(sizes)) + name + sizes
        extra = struct.pack("<HHQQQ", 1, 24, m.size, m.size, at)
        fixed = (b"PK\x01\x02", 3 << 8 | VERSION, VERSION, UTF8, 0, 0, DATE, m.crc32, _MAX, _MAX, len(name), len(extra), 0, 0, 0, 0o100644 << 16, _MAX)
        directory += struct.pack("<4s6H3I5H2I", *fixed) + name + extra
        parts += [header, m]
        at += len(header) + m.size
    n = len(members)
    end64 = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 3 << 8 | VERSION, VERSION, 0, 0, n, n, len(directory), at)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, at + len(directory), 1)
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, min(n, 0xFFFF), min(n, 0xFFFF), min(len(directory), _MAX), _MAX, 0)
    return Archive((*parts, directory + end64 + locator + end), storage)


async def archive_of(artifact: Artifact, storage: Storage) -> Archive:
    """The archive with the artifact's files and, beside them, signatures and report. A file's CRC-32 is computed the first time it is needed."""
    files = {f.path: (f.size, f.sha256) for f in artifact.files}
    side = f"{SIDE_FOLDER}/" if any(f.file in files for f in artifact.signatures) else ""
    files |= {side + f.file: (f.size, f.sha256) for f in artifact.signatures}
    known = await run_in_threadpool(_crcs, [sha256 for _, sha256 in files.values()])
    for size, sha256 in files.values():
        if sha256 not in known:
            known[sha256] = await _crc32(storage, sha256, size)
    return build([Member(path, size, sha256, known[sha256]) for path, (size, sha256) in sorted(files.items())], storage)


def _crcs(digests: list[str]) -> dict[str, int]:
    with reading() as s:
        return {b: crc for b, crc in s.execute(select(Blob.sha256, Blob.crc32).where(Blob.sha256.in_(digests))) if crc is not None}


async def _crc32(storage: Storage, sha256: str, size: int) -> int:
    crc = 0
    async for piece in verified(storage, sha256, size, 0, size):
        crc = await run_in_threadpool(zlib.crc32, piece, crc)

    def keep():
        with session() as s, s.begin():
            s.execute(update(Blob).where(Blob.sha256 == sha256).values(crc32=crc))

    await run_in_threadpool(keep)
    return crc
