"""A few values of a tensor in the place of all of them: read from its bytes, or drawn from what trained weights look like.

A value is its top 16 bits (`s eeeeeeee mmmmmmm` of BF16 and F32; F16 and F64 have other fields in the same 16 bits): all that entropy coding gains
lies there.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field
from functools import cache

SAMPLED, DRAWN, DRAWN_CHANGED = 0.02, 0.08, 0.3
"""How far entropy-coded bytes may be off: told from a sample; from headers alone; of pruned or quantized weights from headers alone."""
DRAWN_MOST, DRAWN_LEAST = 1 << 15, 1 << 10
_SPREAD = 0.35  # of the logarithm of a row's scale
_ROW = 512
_SIGMA = 0.04
_MAGNITUDE = 0x7FFF
WIDTH = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class Values:
    """Args: dtype: one of WIDTH. tops: in order. low: the planes of the bytes below, the most significant first; empty when they are taken for noise.
    doubt: how far bytes told from them may be off, as a share."""

    dtype: str
    tops: list[int]
    low: list[bytes] = field(default_factory=list)
    doubt: float = SAMPLED

    @property
    def zeros(self) -> int:
        """How many of them are 0, of either sign."""
        return sum(1 for top in self.tops if not top & _MAGNITUDE)

    def floats(self) -> list[float]:
        """The values, as far as their top bits tell."""
        raw = struct.pack(f"<{len(self.tops)}H", *self.tops)
        if self.dtype == "F16":
            return list(struct.unpack(f"<{len(self.tops)}e", raw))
        wide = 8 if self.dtype == "F64" else 4
        padded = b"".join(bytes(wide - 2) + raw[i : i + 2] for i in range(0, len(raw), 2))
        return list(struct.unpack(f"<{len(self.tops)}{'d' if wide == 8 else 'f'}", padded))


def from_bytes(dtype: str, raw: bytes) -> Values:
    """Whole values of `raw`."""
    width = WIDTH[dtype]
    raw = raw[: len(raw) // width * width]
    top = bytearray(len(raw) // width * 2)
    top[0::2], top[1::2] = raw[width - 2 :: width], raw[width - 1 :: width]
    low = [raw[i::width] for i in reversed(range(width - 2))]
    return Values(dtype, list(struct.unpack(f"<{len(top) // 2}H", top)), low)


def tops_of(dtype: str, values: list[float]) -> list[int]:
    """Numbers as the top bits of a dtype (BF16, F32 and F64 cut off)."""
    code, width = {"F16": ("e", 2), "F64": ("d", 8)}.get(dtype, ("f", 4))
    raw = struct.pack(f"<{len(values)}{code}", *values)
    return [int.from_bytes(raw[i + width - 2 : i + width], "little") for i in range(0, len(raw), width)]


@cache
def drawn(dtype: str, count: int = DRAWN_MOST) -> Values:
    """Weights as training leaves them: Gaussian in a row, the rows of different scales. The same object for the same arguments."""
    r = random.Random(0)
    values = []
    for _ in range(count // _ROW):
        scale = _SIGMA * 2 ** r.gauss(0, _SPREAD)
        values += [r.gauss(0, scale) for _ in range(_ROW)]
    return Values(dtype, tops_of(dtype, values), doubt=DRAWN)
