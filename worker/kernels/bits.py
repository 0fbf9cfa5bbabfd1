"""Codes of 1 to 8 bits, packed densely, the least significant bit first.

Code i takes the bits i*b .. i*b + b - 1 of the stream; bit k of the stream is bit k % 8 of byte k // 8. Eight codes of 3 bits:

    byte 0  c c b b b a a a      byte 1  f e e e d d d c      byte 2  h h h g g g f f

Eight codes of b bits fill b bytes, whatever b is; so both ways go through one uint64 for eight codes. A last, partial byte ends in zero bits.
"""

from __future__ import annotations

import numpy as np

from worker.kernels import native


def packed_bytes(count: int, num_bits: int) -> int:
    """Bytes that `count` codes take."""
    return (count * num_bits + 7) // 8


def pack_bits(codes: np.ndarray, num_bits: int) -> np.ndarray:
    """Codes uint8 [n], each below 2^num_bits, as uint8 [packed_bytes(n, num_bits)]."""
    if num_bits == 8:
        return codes
    if native.available():
        return native.pack(codes, num_bits)
    count = len(codes)
    if count % 8:
        codes = np.concatenate([codes, np.zeros(-count % 8, np.uint8)])
    eight = codes.reshape(-1, 8)
    words = eight[:, 0].astype("<u8")
    for i in range(1, 8):
        words |= eight[:, i].astype("<u8") << (i * num_bits)
    return words.view(np.uint8).reshape(-1, 8)[:, :num_bits].reshape(-1)[: packed_bytes(count, num_bits)]


def unpack_bits(data: np.ndarray, num_bits: int, count: int) -> np.ndarray:
    """The inverse of `pack_bits`: uint8 [count]. `data` has packed_bytes(count, num_bits) bytes."""
    if num_bits == 8:
        return data
    if native.available():
        return native.unpack(data, num_bits, count)
    groups = (count + 7) // 8
    padded = np.zeros(groups * num_bits, np.uint8)
    padded[: len(data)] = data
    words = np.zeros((groups, 8), np.uint8)
    words[:, :num_bits] = padded.reshape(groups, num_bits)
    words = words.reshape(-1).view("<u8")
    mask = (1 << num_bits) - 1
    return np.stack([(words >> (i * num_bits) & mask).astype(np.uint8) for i in range(8)], axis=1).reshape(-1)[:count]


def to_symbols(codes: np.ndarray, num_bits: int) -> np.ndarray:
    """Bytes that hold 8 // num_bits whole codes each (the first lowest): an entropy coder's symbols, since no code straddles two bytes."""
    per = 8 // num_bits
    if per == 1:
        return codes
    if len(codes) % per:
        codes = np.concatenate([codes, np.zeros(-len(codes) % per, np.uint8)])
    out = codes[0::per].copy()
    for i in range(1, per):
        out |= codes[i::per] << (i * num_bits)
    return out


def from_symbols(symbols: np.ndarray, num_bits: int, count: int) -> np.ndarray:
    """The inverse of `to_symbols`: uint8 [count] of ceil(count / (8 // num_bits)) symbols."""
    per = 8 // num_bits
    if per == 1:
        return symbols
    mask = (1 << num_bits) - 1
    return np.stack([symbols >> (i * num_bits) & mask for i in range(per)], axis=1).reshape(-1)[:count]
