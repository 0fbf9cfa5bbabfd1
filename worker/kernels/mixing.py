"""The probability of a bit from three contexts: an adaptive probability in each, mixed in the logistic domain (M. Mahoney, PAQ6 and lpaq, 2002-2007).

All arithmetic is on integers and `>>` rounds down, so that every machine finds the same.

    state    of a context: p << 10 | n, p / 2^22 the probability of a 1, n how often it was updated, at most 1023; at first p = 2^21, n = 0
    update   p += (2^22 bit - p) * (131072 // (2 n + 3)) >> 16;   n += 1

    s = stretch[p >> 10] of each context              stretch[i] = round(256 ln((2 i + 1) / (8191 - 2 i))), at most 2047 in size
    d = (w0 s0 + w1 s1 + w2 s2) >> 16                 at most 2047 in size
    P(1) = squash[d] / 2^16                           squash[d] = round(65536 / (1 + e^(-d / 256)))
    w += (2^16 bit - squash[d]) * s >> 15             after the bit; each w is 20480 at first
"""

from __future__ import annotations

import math

from worker.kernels.range_coder import RangeDecoder, RangeEncoder

START = 1 << 31
WEIGHT = 20480
LIMIT = 1023
_ONE = 1 << 22

STRETCH = [max(-2047, min(2047, round(256 * math.log((2 * i + 1) / (8191 - 2 * i))))) for i in range(4096)]
SQUASH = [round(65536 / (1 + math.exp(-d / 256))) for d in (*range(2048), *range(-2048, 0))]  # a negative d counts from the end
RATE = [131072 // (2 * n + 3) for n in range(LIMIT + 1)]


class Mixed:
    """Codes bits. Encoder and decoder come to the same probabilities, since both have seen the same bits.

    Args:
        coder: of the bits.
        sizes: how many contexts each of the three tables has.
        sets: how many sets of weights there are.
    """

    def __init__(self, coder: RangeEncoder | RangeDecoder, sizes: tuple[int, int, int], sets: int):
        self.coder = coder.code
        self.tables = tuple([START] * size for size in sizes)
        self.weights = [[WEIGHT] * 3 for _ in range(sets)]

    def code(self, a: int, b: int, c: int, chosen: int, bit: int = 0) -> int:
        """Code a bit in the contexts a, b and c of the three tables, by the weights `chosen`. Returns it; a decoder takes no notice of `bit`."""
        first, second, third = self.tables  # written out: half a million bits are to take seconds
        p0, p1, p2 = first[a], second[b], third[c]
        s0, s1, s2 = STRETCH[p0 >> 20], STRETCH[p1 >> 20], STRETCH[p2 >> 20]
        w = self.weights[chosen]
        d = w[0] * s0 + w[1] * s1 + w[2] * s2 >> 16
        p = SQUASH[-2047 if d < -2047 else 2047 if d > 2047 else d]
        bit = self.coder(p, bit)
        target, error = (_ONE, 65536 - p) if bit else (0, -p)
        n = p0 & LIMIT
        p0 >>= 10
        first[a] = p0 + ((target - p0) * RATE[n] >> 16) << 10 | (n + 1 if n < LIMIT else n)
        n = p1 & LIMIT
        p1 >>= 10
        second[b] = p1 + ((target - p1) * RATE[n] >> 16) << 10 | (n + 1 if n < LIMIT else n)
        n = p2 & LIMIT
        p2 >>= 10
        third[c] = p2 + ((target - p2) * RATE[n] >> 16) << 10 | (n + 1 if n < LIMIT else n)
        w[0] += error * s0 >> 15
        w[1] += error * s1 >> 15
        w[2] += error * s2 >> 15
        return bit
