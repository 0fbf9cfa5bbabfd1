"""Extracts a zip of a model folder: members are regular files with safe names, and nothing is written that was not announced.

The target folder is fresh and holds no links, so a checked name cannot lead out of it. A refusal leaves a half-filled folder, which goes with
the rest of the scratch.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from app.limits import Limits, shown
from worker.formats.member_names import invalid, unsafe
from worker.formats.zip_walk import STORED, Member, walk_zip

CHUNK = 1 << 20


def create(target: Path, name: str) -> BinaryIO:
    path = target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("xb")


def member_chunks(f: BinaryIO, member: Member) -> Iterator[bytes]:
    """The content of a zip's member, inflated, in chunks of at most 1 MiB.

    Raises:
        InputRefused: unsafe-archive, where it has another size or checksum than announced; invalid-archive where it does not inflate.
    """
    f.seek(member.offset)
    left, size, crc = member.csize, 0, 0
    inflater = None if member.method == STORED else zlib.decompressobj(-15)
    pending = b""
    while True:
        if not pending and left:
            pending = f.read(min(left, CHUNK))
            left -= len(pending)
        try:
            chunk = pending if inflater is None else inflater.decompress(pending, CHUNK)
        except zlib.error as e:
            raise invalid(f"member {shown(member.name)} does not inflate: {e}") from None
        ended = inflater is None or inflater.eof
        trailing = inflater is not None and inflater.eof and inflater.unused_data
        pending = b"" if inflater is None else inflater.unconsumed_tail
        size, crc = size + len(chunk), zlib.crc32(chunk, crc)
        if size > member.size:
            raise unsafe(f"member {shown(member.name)} holds more than the {member.size} bytes that it announces")
        if chunk:
            yield chunk
        if not left and not pending and (ended or not chunk):
            break
        if trailing or (inflater is not None and ended):
            raise unsafe(f"member {shown(member.name)} has bytes after its compressed data")
    if trailing:
        raise unsafe(f"member {shown(member.name)} has bytes after its compressed data")
    if size != member.size or not ended:
        raise unsafe(f"member {shown(member.name)} holds {size} bytes and announces {member.size}")
    if crc != member.crc:
        raise unsafe(f"member {shown(member.name)} has checksum {crc:08x} and announces {member.crc:08x}")


def extract_zip(path: Path, target: Path, limits: Limits = Limits()) -> None:
    """Raises: InputRefused; see `walk_zip` and `member_chunks`."""
    members = walk_zip(path, limits)
    with path.open("rb") as f:
        for member in members:
            if not member.is_folder:
                with create(target, member.name) as out:
                    for chunk in member_chunks(f, member):
                        out.write(chunk)
