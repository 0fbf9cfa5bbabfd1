"""Codes of a matrix, most of which are one code (a pruned weight), bit by bit in the contexts of what stands around them.

    0   u8   zero    the code that most have
    1   u8   depth   bits of the number of another code among the others
    2   u32  lag     distance, in values, at which codes are alike: a row, or a period within it (the inputs of a first layer are rows of pixels)
    6   ...  bits    of a range coder

Per code a flag, whether it is another than `zero`, and if so its number, the highest bit first. What pruned and quantized matrices have in common by
principle serves as context: columns and rows are pruned unevenly, kept weights lie together, and those that lie together have like signs.
The contexts are written out in docs/packed.md, the arithmetic in mixing.py and range_coder.py.
"""

from __future__ import annotations

import math
import struct

import numpy as np

from worker.kernels import native
from worker.kernels.mixing import SQUASH, STRETCH, Mixed
from worker.kernels.range_coder import RangeDecoder, RangeEncoder

_HEAD = struct.Struct("<BBI")
MAX_LAG = 1 << 20
_LAGS = 1024  # periods that are looked for
CURVES = np.array(STRETCH, np.int16), np.array(SQUASH, np.int32)


def bucket(x: int) -> int:
    """0, 1, 2, 3, 4-5, 6-7, 8-11, 12-15, ...: two for every power of two."""
    bits = x.bit_length()
    return x if bits < 2 else 2 * bits - 2 + (x >> bits - 2 & 1)


_MOST = 4095  # of what a bucket is looked up for
_BUCKETS = [bucket(x) for x in range(_MOST + 1)]


def encode(codes: np.ndarray, columns: int) -> bytes:
    """Args:
    codes: uint8 [n], n > 0, rows of `columns` codes one after another; the last may be short.
    """
    counts = np.bincount(codes, minlength=256)
    zero = int(np.argmax(counts))
    highest = max((c - (c > zero) for c in np.flatnonzero(counts).tolist() if c != zero), default=0)
    depth, lag = highest.bit_length(), likely_lag(codes != zero, columns)
    if native.available():
        return _HEAD.pack(zero, depth, lag) + native.contexts_encode(codes, columns, zero, depth, lag, CURVES)
    coder = RangeEncoder()
    _code(coder, codes.tolist(), len(codes), columns, zero, depth, lag)
    return _HEAD.pack(zero, depth, lag) + coder.finish()


def decode(body, count: int, columns: int) -> np.ndarray:
    """The inverse of `encode`: uint8 [count].

    Raises:
        ValueError: the head is cut off or says what cannot be, or a code is above 255.
    """
    if len(body) < _HEAD.size:
        raise ValueError("the head of codes in contexts is cut off")
    zero, depth, lag = _HEAD.unpack_from(body)
    if depth > 8 or not 1 <= lag <= MAX_LAG:
        raise ValueError(f"codes in contexts have numbers of {depth} bits and a lag of {lag}")
    if native.available():
        return native.contexts_decode(np.frombuffer(body[_HEAD.size :], np.uint8), count, columns, zero, depth, lag, CURVES)
    return np.frombuffer(_code(RangeDecoder(bytes(body[_HEAD.size :])), None, count, columns, zero, depth, lag), np.uint8)


def likely_lag(other: np.ndarray, columns: int) -> int:
    """The distance at which most flags fall on flags: that of the row above, unless another stands out.

    Args:
        other: bool [n].
    """
    n = len(other)

    def met(lag: int) -> int:
        return int(np.count_nonzero(other[lag:] & other[:-lag])) * n // (n - lag)

    tried = [(met(lag), -lag) for lag in range(3, min(columns, _LAGS + 1, n // 4))]
    best, lag = max(tried, default=(0, 0))
    usual = max(met(columns) if columns < n else 0, int(np.count_nonzero(other)) ** 2 // n)  # in the row above, or by chance
    if best - usual > max(usual // 2, 5 * math.isqrt(usual) + 5):
        return -lag
    return min(columns, MAX_LAG)


def _code(coder: RangeEncoder | RangeDecoder, codes: list[int] | None, count: int, columns: int, zero: int, depth: int, lag: int) -> bytearray:
    """Code `codes`, or decode `count` of them where there are none. Returns them."""
    flag = Mixed(coder, (32 << 4, 32 << 4, 64 << 4), 16).code
    number = Mixed(coder, (1 << depth, 17 << depth, 64 << depth), 1 << depth).code
    out = bytearray([zero]) * count
    before = 2 * lag + 1
    offset = [0] * (before + count)  # code - zero of every value, and of those before the first
    sign = [0] * (before + count)
    total = [0] * (columns + 2)  # flags so far in every column, and in none on both sides
    for start in range(0, count, columns):
        row, held = start // columns, 0
        age = min(15, row.bit_length())
        for c in range(min(columns, count - start)):
            i = before + start + c
            left, left2, up, up2, up_right, up_left = sign[i - 1], sign[i - 2], sign[i - lag], sign[i - 2 * lag], sign[i - lag + 1], sign[i - lag - 1]
            flags = (left != 0) | (left2 != 0) << 1 | (up != 0) << 2 | (up2 != 0) << 3 | (up_right != 0) << 4 | (up_left != 0) << 5
            k = total[c]
            dense = _BUCKETS[32 * (2 * k + total[c - 1] + total[c + 1]) // (row + 2)]
            bit = flag(
                (k if k < 31 else 31) << 4 | age, _BUCKETS[held if held < _MOST else _MOST] << 4 | 16 * c // columns, flags << 4 | min(dense, 15), age,
                codes is not None and codes[start + c] != zero,
            )  # fmt: skip
            if not bit:
                continue
            held += 1
            total[c] += 1
            signs = 2 * (left + up) + left2 + up2 + up_right + up_left + 8
            sizes = (2 * (offset[i - 1] + offset[i - lag]) + offset[i - lag + 1] + offset[i - lag - 1]) >> max(0, depth - 3)
            sizes = max(-32, min(31, sizes)) + 32
            value = 0 if codes is None else codes[start + c] - (codes[start + c] > zero)
            node = 1
            for b in reversed(range(depth)):
                node = 2 * node + number(node, signs << depth | node, sizes << depth | node, node, value >> b & 1)
            value = node - (1 << depth)
            out[start + c] = value = value + (value >= zero)
            offset[i] = value - zero
            sign[i] = 1 if value > zero else -1
    return out
