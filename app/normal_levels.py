"""The levels of `type: nf`: quantiles of the normal distribution, 0 and both ends included, as QLoRA has them (Dettmers et al., 2023, section 3)."""

from __future__ import annotations

import struct
from functools import cache
from statistics import NormalDist


_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


@cache
def normal_levels(num_bits: int) -> tuple[float, ...]:
    """2^num_bits float32s from -1 to 1, ascending: 0, one more above it than below. Those of 4 bits are NF4 as published, whose last digits are of another
    arithmetic."""
    if num_bits == 4:
        return _NF4
    half, total = 1 << (num_bits - 1), 1 << num_bits
    first = 1 - (1 / (2 * (total - 1)) + 1 / (2 * total)) / 2
    top = NormalDist().inv_cdf(first)

    def side(count: int) -> list[float]:
        """`count` quantiles at equal steps of probability, from `first` down to, but without, the median."""
        return [NormalDist().inv_cdf(first + (0.5 - first) * i / count) / top for i in range(count)]

    return tuple(struct.unpack("f", struct.pack("f", v))[0] for v in (*(-x for x in side(half - 1)), 0.0, *reversed(side(half))))
