"""The size of a JPEG XL image, from its first bytes (ISO/IEC 18181-1, SizeHeader and ImageMetadata; 18181-2 for the boxes).

The plugin for Pillow decodes an image as soon as it is opened, so its size has to be known before.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from worker.images.png_walk import invalid

BOXES = b"\0\0\0\x0cJXL \r\n\x87\n"
_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}


@dataclass(frozen=True)
class JxlHeader:
    width: int
    height: int
    bits: int
    animated: bool


class _Bits:
    """Bits of bytes, the lowest first."""

    def __init__(self, data: bytes):
        self.value, self.left = int.from_bytes(data, "little"), 8 * len(data)

    def take(self, count: int) -> int:
        if count > self.left:
            raise ValueError
        found, self.value, self.left = self.value & ((1 << count) - 1), self.value >> count, self.left - count
        return found

    def number(self, *choices: tuple[int, int]) -> int:
        """U32: two bits choose (offset, bits)."""
        offset, bits = choices[self.take(2)]
        return offset + self.take(bits)


def jxl_header(name: str, data: bytes) -> JxlHeader:
    """Raises: InputRefused: invalid-image."""
    try:
        return _header(_Bits(_codestream(data)[2:64]))
    except (ValueError, IndexError, struct.error):
        raise invalid(name, "its header is none of JPEG XL") from None


def _codestream(data: bytes) -> bytes:
    """The first bytes of the codestream, which stands alone or in boxes."""
    if data.startswith(b"\xff\x0a"):
        return data[:64]
    if not data.startswith(BOXES):
        raise ValueError
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1:
            (size,), head = struct.unpack_from(">Q", data, at + 8), 16
        size = size or len(data) - at
        if size < head:
            raise ValueError
        if kind in (b"jxlc", b"jxlp"):
            start = at + head + 4 * (kind == b"jxlp")
            if data[start : start + 2] != b"\xff\x0a":
                raise ValueError
            return data[start : start + 64]
        at += size
    raise ValueError


def _size(bits: _Bits) -> tuple[int, int]:
    small = bits.take(1)

    def side() -> int:
        return 8 * (1 + bits.take(5)) if small else bits.number((1, 9), (1, 13), (1, 18), (1, 30))

    height = side()
    ratio = bits.take(3)
    if not ratio:
        return side(), height
    over, under = _RATIOS[ratio]
    return height * over // under, height


def _header(bits: _Bits) -> JxlHeader:
    width, height = _size(bits)
    animated, depth = False, 8
    if not bits.take(1):  # not all as usual
        if bits.take(1):
            bits.take(3)  # orientation
            if bits.take(1):
                _size(bits)
            if bits.take(1):
                raise ValueError  # a preview, which nobody writes
            animated = bool(bits.take(1))
            if animated:
                bits.number((100, 0), (1000, 0), (1, 10), (1, 30))
                bits.number((1, 0), (1001, 0), (1, 8), (1, 10))
                bits.number((0, 0), (0, 3), (0, 16), (0, 32))
                bits.take(1)
        if bits.take(1):  # floating point
            depth = bits.number((32, 0), (16, 0), (24, 0), (1, 6))
        else:
            depth = bits.number((8, 0), (10, 0), (12, 0), (1, 6))
    return JxlHeader(width, height, depth, animated)
