"""What an AVIF says of its size, and what its AV1 streams say (ISO/IEC 14496-12 and 23008-12; AV1 specification, 5.5): the decoder makes as many pixels as the stream says.

    ftyp | meta: iinf (types of items), iloc (where they lie), iprp: ipco (properties, among them ispe: width, height), ipma (which item has which) | mdat
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_MOST = 4096  # items, boxes at one level
_SEQUENCE = 1  # type of an OBU


@dataclass(frozen=True)
class Item:
    """A coded picture: as it is told (`ispe`), and as its stream says; None where that cannot be seen."""

    told: tuple[int, int] | None
    stream: tuple[int, int] | None


def items(data: bytes) -> list[Item]:
    """Those of AV1; empty where the boxes cannot be walked."""
    try:
        return list(_items(data))
    except (IndexError, KeyError, ValueError, struct.error):
        return []


def bits(data: bytes) -> int:
    """Bits of a sample by the first av1C box (AV1 in ISOBMFF, section 2.3): high_bitdepth, twelve_bit."""
    at = data.find(b"av1C", 0, 1 << 20)
    flags = data[at + 6] if 0 <= at < len(data) - 6 else 0
    return (12 if flags & 0x20 else 10) if flags & 0x40 else 8


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(type, start of content, end)."""
    for _ in range(_MOST):
        if at + 8 > end:
            return
        size, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1:
            (size,), head = struct.unpack_from(">Q", data, at + 8), 16
        size = size or end - at
        if size < head or at + size > end:
            return
        yield kind, at + head, at + size
        at += size


def _only(data: bytes, at: int, end: int) -> dict[bytes, tuple[int, int]]:
    return {kind: (a, b) for kind, a, b in _boxes(data, at, end)}


def _items(data: bytes) -> Iterator[Item]:
    at, end = _only(data, 0, len(data))[b"meta"]
    meta = _only(data, at + 4, end)
    types, places, sizes = _types(data, *meta[b"iinf"]), _places(data, meta), _sizes(data, *meta[b"iprp"])
    for item, kind in types.items():
        if kind == b"av01":
            yield Item(sizes.get(item), _stream(b"".join(data[a : a + n] for a, n in places.get(item, ()))))


def _types(data: bytes, at: int, end: int) -> dict[int, bytes]:
    start = at + (6 if data[at] == 0 else 8)
    out = {}
    for kind, a, _ in _boxes(data, start, end):
        version = data[a]
        if kind == b"infe" and version in (2, 3):
            wide = 4 if version == 3 else 2
            out[int.from_bytes(data[a + 4 : a + 4 + wide])] = data[a + 6 + wide : a + 10 + wide]
    return out


def _places(data: bytes, meta: dict) -> dict[int, list[tuple[int, int]]]:
    """Item -> (offset in the file, bytes) of its parts."""
    at, _ = meta[b"iloc"]
    version, sizes = data[at], struct.unpack_from(">H", data, at + 4)[0]
    offset, length, base, index = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15, sizes & 15 if version else 0
    at += 6

    def take(count: int) -> int:
        nonlocal at
        at += count
        if at > len(data):
            raise ValueError
        return int.from_bytes(data[at - count : at])

    out: dict[int, list[tuple[int, int]]] = {}
    wide = 4 if version == 2 else 2
    for _ in range(min(take(wide), _MOST)):
        item, method = take(wide), take(2) & 15 if version else 0
        take(2)
        start = take(base) + (meta[b"idat"][0] if method == 1 else 0)
        parts = []
        for _ in range(min(take(2), _MOST)):
            take(index)
            first, count = take(offset), take(length)
            parts.append((start + first, count or len(data)))
        out[item] = parts if method < 2 else []
    return out


def _sizes(data: bytes, at: int, end: int) -> dict[int, tuple[int, int]]:
    """Item -> (width, height)."""
    boxes = _only(data, at, end)
    properties = [struct.unpack_from(">II", data, a + 4) if kind == b"ispe" else None for kind, a, _ in _boxes(data, *boxes[b"ipco"])]
    at, _ = boxes[b"ipma"]
    version, wide = data[at], 2 if data[at + 3] & 1 else 1
    (count,) = struct.unpack_from(">I", data, at + 4)
    at, out = at + 8, {}
    for _ in range(min(count, _MOST)):
        item, at = int.from_bytes(data[at : at + (4 if version else 2)]), at + (4 if version else 2)
        for i in range(data[at]):
            which = int.from_bytes(data[at + 1 + i * wide : at + 1 + (i + 1) * wide]) & ((1 << 8 * wide - 1) - 1)
            if 0 < which <= len(properties) and properties[which - 1]:
                out.setdefault(item, properties[which - 1])
        at += 1 + data[at] * wide
    return out


def _stream(data: bytes) -> tuple[int, int] | None:
    """Width and height of the first sequence header."""
    at = 0
    while at < len(data):
        head = data[at]
        at += 2 if head & 4 else 1
        size, shift = len(data) - at, 0
        if head & 2:
            size = 0
            for shift in range(0, 56, 7):
                size |= (data[at] & 127) << shift
                at += 1
                if not data[at - 1] & 128:
                    break
        if head >> 3 & 15 == _SEQUENCE:
            return _sequence(data[at : at + min(size, 64)])
        at += size
    return None


def _sequence(data: bytes) -> tuple[int, int] | None:
    left, value = 8 * len(data), int.from_bytes(data)

    def take(count: int) -> int:
        nonlocal left
        left -= count
        if left < 0:
            raise ValueError
        return value >> left & ((1 << count) - 1)

    take(4)  # profile, still picture
    if take(1):  # reduced header
        take(5)
    else:
        if take(1):
            return None  # timing, which a picture has not
        delays = take(1)
        for _ in range(take(5) + 1):
            take(12)
            if take(5) > 7:
                take(1)
            if delays and take(1):
                take(4)
    bits = take(4) + 1, take(4) + 1
    return take(bits[0]) + 1, take(bits[1]) + 1
