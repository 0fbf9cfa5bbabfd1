"""A PNG's chunks (W3C PNG, third edition), walked before a decoder sees them.

    89 50 4E 47 0D 0A 1A 0A | length u32be, type, data, CRC-32 | ... | IEND, and nothing after it
"""

from __future__ import annotations

import struct
import zlib

from app.errors import InputRefused
from app.limits import shown

SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"tIME")
"""Chunks that say something of people, places or times."""
PICTURE = (
    b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"cICP", b"mDCV", b"cLLI", b"sBIT", b"bKGD", b"pHYs", b"hIST", b"sPLT", b"acTL", b"fcTL", b"fdAT",
)  # fmt: skip
"""Chunks that say what the pixels are and how they look; anything may stand in another one."""
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_TEXT_BYTES = 1 << 20
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))  # of Adam7: x, y, step of x, step of y


def invalid(name: str, why: str) -> InputRefused:
    return InputRefused("invalid-image", f"{shown(name)} is no valid image: {why}")


def chunks(name: str, data: bytes) -> list[tuple[bytes, bytes]]:
    """(type, data) of each.

    Raises:
        InputRefused: invalid-image: a wrong checksum, cut off, or followed by something else.
    """
    if not data.startswith(SIGNATURE):
        raise invalid(name, "it is named like a PNG and does not begin like one")
    found, at = [], len(SIGNATURE)
    while not found or found[-1][0] != b"IEND":
        if at + 12 > len(data):
            raise invalid(name, "it is cut off")
        (length,) = struct.unpack_from(">I", data, at)
        kind, end = data[at + 4 : at + 8], at + 12 + length
        if end > len(data):
            raise invalid(name, "it is cut off")
        if zlib.crc32(data[at + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise invalid(name, f"the checksum of its chunk {shown(kind.decode('latin1'))} is wrong")
        found.append((kind, data[at + 8 : end - 4]))
        at = end
    if at < len(data):
        raise invalid(name, f"{len(data) - at} bytes follow its end")
    if found[0][0] != b"IHDR" or len(found[0][1]) != 13:
        raise invalid(name, "it does not begin with its header")
    return found


def header(name: str, data: bytes) -> tuple[int, int, int, int]:
    """Width, height, bits of a sample, colour type.

    Raises:
        InputRefused: invalid-image.
    """
    width, height, depth, colour, compression, filtering, interlace = struct.unpack(">IIBBBBB", chunks(name, data)[0][1])
    if colour not in _CHANNELS or depth not in _DEPTHS[colour] or compression or filtering or interlace > 1 or not 0 < width < 1 << 31 or not 0 < height < 1 << 31:
        raise invalid(name, "its header has a value that PNG has not")
    return width, height, depth, colour


def check_content(name: str, data: bytes) -> None:
    """Inflate what a decoder would, to no more than the header announces.

    Raises:
        InputRefused: limit-expand: a chunk holds more than it may; invalid-image: less, or no zlib stream.
    """
    width, height, depth, colour = header(name, data)
    found = chunks(name, data)
    bits, interlaced = depth * _CHANNELS[colour], found[0][1][12]
    parts = ((-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in _PASSES) if interlaced else ((width, height),)
    expected = sum(h * (1 + -(-w * bits // 8)) for w, h in parts if w > 0 and h > 0)
    stream = zlib.decompressobj()
    got = 0
    try:
        for kind, content in found:
            if kind == b"IDAT":
                got += _inflated(stream, content, expected - got + 1)
                if got > expected:
                    raise InputRefused("limit-expand", f"{shown(name)} holds more pixels than its header announces")
            elif kind in (b"zTXt", b"iTXt", b"iCCP") and (packed := _packed_text(kind, content)) is not None:
                if _inflated(zlib.decompressobj(), packed, _TEXT_BYTES + 1) > _TEXT_BYTES:
                    raise InputRefused("limit-expand", f"{shown(name)} has a chunk {kind.decode()} of more than {_TEXT_BYTES} bytes")
    except zlib.error as e:
        raise invalid(name, f"it does not inflate ({e})") from None
    if got < expected:
        raise invalid(name, "it has fewer pixels than its header announces")


def _inflated(stream, data: bytes, most: int) -> int:
    """Bytes that come of `data`, no more than about `most` of them."""
    count = 0
    while data and count < most and not stream.eof:
        count += len(stream.decompress(data, min(1 << 20, most - count)))
        data = stream.unconsumed_tail
    return count


def _packed_text(kind: bytes, content: bytes) -> bytes | None:
    """The compressed part of a chunk; None where there is none."""
    keyword, zero, rest = content.partition(b"\0")
    if not zero:
        return None
    if kind != b"iTXt":
        return rest[1:]
    if rest[:1] != b"\1":
        return None
    return rest[2:].split(b"\0", 2)[-1]


def bare(data: bytes) -> bytes:
    """The same PNG with nothing but its picture."""
    kept = (kind_content for kind_content in chunks("", data) if kind_content[0] in PICTURE)
    return SIGNATURE + b"".join(struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in kept)
