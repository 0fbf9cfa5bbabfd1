"""Where the last byte that belongs to a TIFF lies (TIFF 6.0; BigTIFF): its directories, the values that they point to, and strips, tiles and thumbnails.

    "II" or "MM"  u16 42  u32 offset of the first directory           BigTIFF: u16 43  u16 8  u16 0  u64 offset
    directory     u16 entries  entries x 12 bytes  u32 next           BigTIFF: u64 entries  entries x 20 bytes  u64 next
    entry         u16 tag  u16 type  count  value, or its offset where it is larger than the field
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_WHOLE = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_PARTS = ((273, 279), (324, 325), (513, 514), (288, 289))
"""Tags of offsets, and of lengths: strips, tiles, a thumbnail, free bytes."""
_BELOW = (330, 34665, 34853, 40965)
"""Tags that point to further directories."""
_MOST = 4096
_LONGEST = 1 << 20


def end(data: bytes) -> int:
    """Bytes of the file that belong to it; its length where it cannot be walked, and where only zeros follow, by which writers align pages."""
    try:
        found = min(len(data), max(_ends(data)))
        return found if any(data[found:]) else len(data)
    except (IndexError, KeyError, ValueError, struct.error):
        return len(data)


def _ends(data: bytes) -> Iterator[int]:
    order = {b"II": "<", b"MM": ">"}[data[:2]]
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    head, entry, offset = ("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I")
    size, field = struct.calcsize(order + entry), 8 if big else 4
    left, seen = [struct.unpack_from(order + offset, data, 8 if big else 4)[0]], set()
    yield 16 if big else 8
    while left:
        at = left.pop()
        if not at or at in seen:
            continue
        seen.add(at)
        (count,) = struct.unpack_from(order + head, data, at)
        start = at + struct.calcsize(order + head)
        if len(seen) > _MOST or count > _MOST:
            raise ValueError
        values: dict[int, tuple[int, ...]] = {}
        for i in range(count):
            tag, kind, number, raw = struct.unpack_from(order + entry, data, start + i * size)
            nbytes = _SIZES.get(kind, 1) * number
            place = start + i * size + size - field if nbytes <= field else struct.unpack(order + offset, raw)[0]
            yield place + nbytes if nbytes > field else 0
            if kind in _WHOLE and number <= _LONGEST:
                values[tag] = struct.unpack_from(f"{order}{number}{_WHOLE[kind]}", data, place)
        for starts, lengths in _PARTS:
            yield from (a + b for a, b in zip(values.get(starts, ()), values.get(lengths, ()), strict=False))
        left += [p for tag in _BELOW for p in values.get(tag, ())]
        left.append(struct.unpack_from(order + offset, data, start + count * size)[0])
        yield start + count * size + struct.calcsize(order + offset)
