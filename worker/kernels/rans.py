"""Codes by their frequencies: rANS (J. Duda 2013) with 32-bit states that move 16 bits at a time, many states side by side.

    0   u8   log       of the number of lanes
    1   u16  frequency[2^b]    of every code, in 2^14; b is the bits of a code
    ..  u32  state[lanes]
    ..  u16  words

Value i belongs to lane i % lanes. Decoding takes the values in order and per value x, the state of its lane, f and c the code's frequency and the sum of
those before it:

    the code with c <= x % 2^14 < c + f;   x = f * (x >> 14) + x % 2^14 - c;   if x < 2^16: x = x << 16 | the next word

Each state ends as 2^16, where the encoder began, and no word is left. A Huffman code loses 2 % of 4-bit codes to whole bits; this loses 0.2 %.
"""

from __future__ import annotations

import math

import numpy as np

BITS = 14
_TOTAL = 1 << BITS
_LOW = 1 << 16
LEAST_LANES = 16
_STEPS = 1 << 13  # values of a lane at most: each step takes some microseconds, however many lanes there are
_LANE = 1 << 12  # values of a lane, as it is encoded
_COSTS = np.array([0, *(round(65536 * (BITS - math.log2(f))) for f in range(1, _TOTAL + 1))])  # of a frequency, in 2^-16 bits


def encoded_bytes(codes: np.ndarray, num_bits: int) -> int:
    """What `encode` comes to, within a few bytes: cheap to know, and the same on every machine."""
    counts = np.bincount(codes, minlength=1 << num_bits)
    return int((counts * _COSTS[frequencies(counts)]).sum() >> 19) + 1 + (2 << num_bits) + 3 * _lanes(len(codes))


def _lanes(count: int) -> int:
    return 1 << max(LEAST_LANES, count // _LANE).bit_length() - 1


def encode(codes: np.ndarray, num_bits: int) -> bytes:
    """uint8 [n], at least LEAST_LANES, each below 2^num_bits."""
    frequency = frequencies(np.bincount(codes, minlength=1 << num_bits))
    lanes = _lanes(len(codes))
    f = frequency.astype(np.uint64)
    first = np.cumsum(f) - f
    limit = f << np.uint64(32 - BITS)
    states, words = np.full(lanes, _LOW, np.uint64), []
    for start in reversed(range(0, len(codes), lanes)):
        c = codes[start : start + lanes]
        x = states[: len(c)]
        full = x >= limit[c]
        words.append((x[full] & np.uint64(_LOW - 1)).astype("<u2"))
        x[full] >>= np.uint64(16)
        whole, rest = np.divmod(x, f[c])
        x[:] = (whole << np.uint64(BITS)) + rest + first[c]
    head = bytes([lanes.bit_length() - 1]) + frequency.astype("<u2").tobytes() + states.astype("<u4").tobytes()
    return head + np.concatenate(words[::-1]).tobytes()


def frequencies(counts: np.ndarray) -> np.ndarray:
    """int64: shares of 2^14, at least 1 of what occurs."""
    out = np.maximum(counts * _TOTAL // max(1, int(counts.sum())), counts > 0)
    while over := int(out.sum()) - _TOTAL:
        largest = int(np.argmax(out))
        out[largest] -= min(over, int(out[largest]) // 2)
    return out


def decode(body, count: int, num_bits: int) -> np.ndarray:
    """The inverse of `encode`: uint8 [count].

    Raises:
        ValueError: a part is cut off, frequencies do not add up, or words and states do not come out even.
    """
    log, size = (body[0] if len(body) else 0), 1 << num_bits
    lanes = 1 << min(log, 20)
    if not LEAST_LANES <= lanes <= count or count > lanes * _STEPS or len(body) < 1 + 2 * size + 4 * lanes or (len(body) - 1) % 2:
        raise ValueError(f"{count} codes in 2^{log} lanes and {len(body)} bytes")
    data = np.frombuffer(body, np.uint8)[1:]
    frequency = data[: 2 * size].view("<u2").astype(np.int64)
    states = data[2 * size : 2 * size + 4 * lanes].view("<u4").astype(np.uint32)
    words = data[2 * size + 4 * lanes :].view("<u2")
    if frequency.sum() != _TOTAL or states.min() < _LOW:
        raise ValueError("frequencies of codes do not add up, or a state is too small")
    code = np.repeat(np.arange(size, dtype=np.uint8), frequency)
    times = frequency[code].astype(np.uint32)
    plus = (np.arange(_TOTAL) - (np.cumsum(frequency) - frequency)[code]).astype(np.uint32)
    out, at = np.empty(count, np.uint8), 0
    for start in range(0, count, lanes):
        x = states[: min(lanes, count - start)]
        slot = x & np.uint32(_TOTAL - 1)
        out[start : start + lanes] = code[slot]
        x >>= np.uint32(BITS)
        x *= times[slot]
        x += plus[slot]
        low = np.flatnonzero(x < _LOW)
        taken = words[at : at + len(low)]
        if len(taken) < len(low):
            raise ValueError("the words of codes are cut off")
        x[low] = x[low] << np.uint32(16) | taken
        at += len(low)
    if at != len(words) or (states != _LOW).any():
        raise ValueError("words are left behind the last code, or a state does not end where it began")
    return out
