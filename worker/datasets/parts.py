"""Several byte strings in one.

    count: u8 | their lengths: u64 each, little-endian | the strings, one after another
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from worker.datasets.refusals import damaged


def join(parts: Sequence[bytes]) -> bytes:
    return struct.pack(f"<B{len(parts)}Q", len(parts), *map(len, parts)) + b"".join(parts)


def split(data: bytes, count: int) -> list[bytes]:
    """Raises: InputRefused: invalid-dataset, where `data` are not `count` byte strings."""
    start = 1 + 8 * count
    if len(data) < start or data[0] != count:
        raise damaged(f"{count} parts of a frame must be there")
    lengths = struct.unpack_from(f"<{count}Q", data, 1)
    if start + sum(lengths) != len(data):
        raise damaged("the parts of a frame do not fill it")
    out, at = [], start
    for length in lengths:
        out.append(data[at : at + length])
        at += length
    return out
