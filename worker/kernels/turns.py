"""Symbols below 16, each by its frequencies in a context that the decoder knows: rANS in 32 lanes that take turns.

    0   u32  words
    4   u32  state[32]   at first; lane i % 32 has symbol i
    132 u16  word[words]

A state x is at least 2^16 and below 2^32. To decode: s = x % 4096 lies in symbol r of the context, c <= s < c + f, where f is its frequency among 4096 and c the sum of those
of lower symbols;  x = f * (x >> 12) + s - c, and if that is below 2^16, x = x << 16 | next word. At the end all states are 2^16 and all words used.

Sources: as for rans.py. Compiled in `cpp/turns.cpp`; the same bytes by numpy here.
"""

from __future__ import annotations

import math
import struct

import numpy as np

from worker.kernels import native, native_scaled

SYMBOLS, BITS, LANES = 16, 12, 32
SUM = 1 << BITS
_LOW = 1 << 16
_HEAD = struct.Struct(f"<I{4 * LANES}s")
_COSTS = np.array([0, *(round(65536 * (BITS - math.log2(f))) for f in range(1, SUM + 1))])  # of a frequency, in 2^-16 bits


def counted(symbols: np.ndarray, contexts: np.ndarray) -> np.ndarray:
    """How often each symbol occurs in each context: int64 [16, 16] of uint8 [n] and [n], both below 16."""
    if native.available():
        return native_scaled.turns_count(symbols, contexts)
    return np.bincount(contexts.astype(np.int64) * SYMBOLS + symbols, minlength=SYMBOLS * SYMBOLS).reshape(SYMBOLS, SYMBOLS)


def frequencies(counts: np.ndarray) -> np.ndarray:
    """int64 [16, 16], each row of sum 4096 or, where nothing occurs, of zeros; what occurs has 1 at least, and what rounding leaves goes to or comes from the largest."""
    out = np.zeros_like(counts)
    for own, found in zip(counts, out, strict=True):
        n = int(own.sum())
        if not n:
            continue
        found[:] = np.maximum((own * SUM + n // 2) // n, own > 0)
        while left := SUM - int(found.sum()):
            i = int(np.argmax(found))
            found[i] += left if left > 0 else -min(-left, int(found[i]) // 2)
    return out


def encoded_bytes(counts: np.ndarray) -> int:
    """What `encode` comes to with the frequencies of these counts, within some bytes; the same on every machine."""
    return int((counts * _COSTS[frequencies(counts)]).sum() >> 19) + _HEAD.size


def encode(symbols: np.ndarray, contexts: np.ndarray, frequency: np.ndarray) -> bytes:
    """The stream of uint8 [n]; `frequency` as of `frequencies`, above 0 of all that occurs."""
    words, states = native_scaled.turns_encode(symbols, contexts, frequency) if native.available() else _encode(symbols, contexts, frequency)
    return b"".join([_HEAD.pack(len(words), states.astype("<u4").tobytes()), words.astype("<u2", copy=False)])


def decode(data, contexts: np.ndarray, frequency: np.ndarray) -> tuple[np.ndarray, memoryview]:
    """The inverse: uint8 [n] of as many contexts, and what follows the stream.

    Raises:
        ValueError: this is no such stream.
    """
    if len(data) < _HEAD.size:
        raise ValueError(f"a stream of {len(data)} bytes has no room for its head")
    count, states = _HEAD.unpack_from(data)
    end = _HEAD.size + 2 * count
    if len(data) < end:
        raise ValueError(f"{count} words in {len(data)} bytes")
    words, states = data[_HEAD.size : end], np.frombuffer(states, "<u4")
    if (states < _LOW).any():
        raise ValueError("a state of a stream is too small")
    if native.available():
        return native_scaled.turns_decode(np.frombuffer(words, np.uint8), states, contexts, frequency), data[end:]
    return _decode(np.frombuffer(words, "<u2"), states, contexts, frequency), data[end:]


def _encode(symbols: np.ndarray, contexts: np.ndarray, frequency: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    below = np.cumsum(frequency, axis=1) - frequency
    x, out = np.full(LANES, _LOW, np.int64), []
    for at in range((len(symbols) - 1) // LANES * LANES, -1, -LANES):
        symbol, context = symbols[at : at + LANES], contexts[at : at + LANES]
        f, c, s = frequency[context, symbol], below[context, symbol], x[: len(symbol)]
        full = s >= f << 32 - BITS
        out.append((s[full] & 0xFFFF).astype(np.uint16))
        s = np.where(full, s >> 16, s)
        x[: len(symbol)] = (s // f << BITS) + s % f + c
    return np.concatenate(out[::-1]) if out else np.zeros(0, np.uint16), x


def _decode(words: np.ndarray, states: np.ndarray, contexts: np.ndarray, frequency: np.ndarray) -> np.ndarray:
    upto = np.cumsum(frequency, axis=1)
    if (upto[np.unique(contexts), -1] != SUM).any():
        raise ValueError("a stream has a context in which nothing occurs")
    symbol_of = np.zeros((len(frequency), SUM), np.uint8)
    for own, ends in zip(symbol_of, upto, strict=True):
        own[: ends[-1]] = np.repeat(np.arange(SYMBOLS, dtype=np.uint8), np.diff(ends, prepend=0))
    below, x, out, word = upto - frequency, states.astype(np.int64), np.empty(len(contexts), np.uint8), 0
    for at in range(0, len(contexts), LANES):
        context = contexts[at : at + LANES]
        s = x[: len(context)]
        slot = s & (SUM - 1)
        out[at : at + len(s)] = symbol = symbol_of[context, slot]
        s = frequency[context, symbol] * (s >> BITS) + slot - below[context, symbol]
        wants = s < _LOW
        if word + (more := int(wants.sum())) > len(words):
            raise ValueError("the words of a stream end too early")
        s[wants] = s[wants] << 16 | words[word : word + more]
        word += more
        x[: len(s)] = s
    if word != len(words) or (x != _LOW).any():
        raise ValueError("a stream does not end where it should")
    return out
