"""Exponents by their frequencies: rANS over the fifteen commonest bytes and an escape, in 64 lanes that take turns, its slots found by Walker's alias method.

    0    u8   symbol[16]     byte that a rank 0..14 stands for; the last one is 0
    16   u16  frequency[16]  of each rank, among 4096: their sum is 4096, none is 4096; rank 15 stands for the next of the escapes
    48   u32  words
    52   u32  state[64]      at first; lane i % 64 has byte i
    308  u16  word[words]
    ..   u8   escape[..]     as many as the chunk's head says

A state x is at least 2^15 and below 2^31. To decode: s = x % 4096 lies in bucket b = s // 256, which has two ranks: `first` up to its slot `last`, beyond it `second`.
Of the rank that is found, f its frequency and o the number of its slots in front of s,  x = f * (x >> 12) + o, and if that is below 2^15, x = x << 16 | next word.
At the end all states are 2^15, and all words and escapes used. Sixteen entries fit a register, so that decoding looks nothing up in memory.

Buckets: bucket b first has its own rank b. Ranks of less than 256 slots, and the others, are stacks, the highest rank on top. As long as both have
any, the top s of the small ones leaves its bucket: it keeps what s has left, and the rest of bucket s goes to the top l of the large ones, which keeps that
much less and, once it has less than 256 itself, moves to the top of the small ones.

Sources: Duda, 2013, "Asymmetric numeral systems" (rANS); Giesen, 2014, "Interleaved entropy coders"; Walker, 1977 (alias). Compiled in `cpp/alias.hpp`; the same bytes by
numpy here, some hundred times as slow.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from worker.kernels import native

FROM = 1 << 16
"""Bytes that pay for the tables."""
_LANES, _BITS, _LOWEST, _ESCAPE, _BUCKET = 64, 12, 1 << 15, 15, 256
_SLOTS = 1 << _BITS
_MOST_ESCAPES = 64  # one in so many
_HEAD = struct.Struct("<16s32sI256s")


def counted(plane: np.ndarray) -> np.ndarray:
    """How often each byte occurs: int64 [256]."""
    return native.bytes_count(plane) if native.available() else np.bincount(plane, minlength=256)


def suits(counts: np.ndarray) -> bool:
    """Whether bytes that occur so often, int64 [256], are mostly fifteen, but not one."""
    n, common = int(counts.sum()), np.sort(counts)[::-1]
    return n >= FROM and int(common[0]) < n and (n - int(common[:_ESCAPE].sum())) * _MOST_ESCAPES <= n


def encode(plane: np.ndarray, counts: np.ndarray) -> tuple[bytes, int]:
    """The stream of uint8 [n], and how many escapes it has.

    Args:
        counts: int64 [256], how often each byte occurs; see `suits`.
    """
    order = np.argsort(-counts, kind="stable")[:_ESCAPE]
    symbols = np.append(order, 0).astype(np.uint8)
    each = np.append(counts[order], len(plane) - counts[order].sum())
    tables = Tables.of(_normalized(each))
    if native.available():
        ranks, escapes = native.ranks(plane, symbols, int(each[_ESCAPE]))
        words, states = native.alias_encode(ranks, tables)
    else:
        ranks = _ranks(plane, symbols)
        words, states = _encode(ranks, tables)
        escapes = plane[ranks == _ESCAPE]
    head = _HEAD.pack(symbols.tobytes(), tables.frequencies.astype("<u2").tobytes(), len(words), states.astype("<u4").tobytes())
    return b"".join([head, words.astype("<u2", copy=False), escapes]), len(escapes)


def decode(data, count: int, escapes: int) -> np.ndarray:
    """The inverse: uint8 [count].

    Raises:
        ValueError: this is no such stream.
    """
    if len(data) < _HEAD.size:
        raise ValueError(f"a stream of {len(data)} bytes has no room for its head")
    symbols, frequencies, words, states = _HEAD.unpack_from(data)
    symbols, frequencies, states = (np.frombuffer(part, dtype) for part, dtype in ((symbols, np.uint8), (frequencies, "<u2"), (states, "<u4")))
    if len(data) != _HEAD.size + 2 * words + escapes:
        raise ValueError(f"{words} words and {escapes} escapes in {len(data)} bytes")
    if int(frequencies.sum(dtype=np.int64)) != _SLOTS or int(frequencies.max()) == _SLOTS or symbols[_ESCAPE]:
        raise ValueError("the frequencies of a stream do not come to 4096")
    tables = Tables.of(frequencies.astype(np.int64))
    coded, rest = data[_HEAD.size : _HEAD.size + 2 * words], np.frombuffer(data[_HEAD.size + 2 * words :], np.uint8)
    if native.available():
        return native.alias_decode(symbols, tables, states, np.frombuffer(coded, np.uint8), rest, count)
    ranks = _decode(tables, states.astype(np.int64), np.frombuffer(coded, "<u2"), count)
    out, where = symbols[ranks], np.flatnonzero(ranks == _ESCAPE)
    if len(where) != escapes:
        raise ValueError(f"{escapes} escapes for {len(where)}")
    out[where] = rest
    return out


def _normalized(counts: np.ndarray) -> np.ndarray:
    """Frequencies of sum 4096, int64 [16]: those that occur have one at least, none has all; what rounding leaves goes to or comes from the largest."""
    n = int(counts.sum())
    found = np.where(counts > 0, np.clip((counts * _SLOTS + n // 2) // n, 1, _SLOTS - 1), 0)
    while left := _SLOTS - int(found.sum()):
        room = np.where((counts > 0) & (found < _SLOTS - 1), found, 0) if left > 0 else found
        i = int(np.argmax(room))
        found[i] += min(left, _SLOTS - 1 - int(found[i])) if left > 0 else -min(-left, int(found[i]) // 2)
    return found


@dataclass(frozen=True)
class Tables:
    """Args:
    frequencies: int64 [16].
    first, second: uint32 [16] of each bucket: frequency | rank << 12 | (slots of the rank in front of the bucket's part - where that part begins + 4096) << 16.
    last: uint8 [16], see above.
    """

    frequencies: np.ndarray
    first: np.ndarray
    second: np.ndarray
    last: np.ndarray

    @classmethod
    def of(cls, frequencies: np.ndarray) -> Tables:
        """Frequencies int64 [16] of sum 4096."""
        f = frequencies.tolist()
        left, keeps, other = list(f), [_BUCKET] * 16, list(range(16))
        small, large = [r for r in range(16) if f[r] < _BUCKET], [r for r in range(16) if f[r] >= _BUCKET]
        while small and large:
            s, m = small.pop(), large[-1]
            keeps[s], other[s] = left[s], m
            left[m] -= _BUCKET - left[s]
            if left[m] < _BUCKET:
                small.append(large.pop())
        first, second, taken = [0] * 16, [0] * 16, [0] * 16
        for b in range(16):
            at, kept, o = b * _BUCKET, keeps[b], other[b]
            first[b] = f[b] | b << 12 | (taken[b] - at + _SLOTS) << 16
            taken[b] += kept
            second[b] = f[o] | o << 12 | (taken[o] - at - kept + _SLOTS) << 16
            taken[o] += _BUCKET - kept
            if not kept:
                first[b] = second[b]
        return cls(frequencies, np.array(first, np.uint32), np.array(second, np.uint32), np.array([(k or _BUCKET) - 1 for k in keeps], np.uint8))

    @property
    def starts(self) -> np.ndarray:
        """int64 [16]: the sums of the frequencies before."""
        return np.cumsum(self.frequencies) - self.frequencies

    @property
    def slots(self) -> np.ndarray:
        """uint16 [4097]: `slots[starts[r] + o]` is the slot of rank r that has o of its slots in front of it; the last entry only fills up."""
        if native.available():
            return native.slots(self)
        out, slot = np.zeros(_SLOTS + 1, np.uint16), np.arange(_SLOTS)
        e = np.where(slot % _BUCKET > self.last.repeat(_BUCKET), self.second.repeat(_BUCKET), self.first.repeat(_BUCKET)).astype(np.int64)
        out[self.starts[e >> 12 & 15] + slot + (e >> 16) - _SLOTS] = slot
        return out


def _ranks(plane: np.ndarray, symbols: np.ndarray) -> np.ndarray:
    of = np.full(256, _ESCAPE, np.uint8)
    of[symbols[:_ESCAPE][::-1]] = np.arange(_ESCAPE)[::-1]
    return of[plane]


def _encode(ranks: np.ndarray, t: Tables) -> tuple[np.ndarray, np.ndarray]:
    """Words uint16, and states [64]."""
    x, out, starts, slots = np.full(_LANES, _LOWEST, np.int64), [], t.starts, t.slots
    for at in range((len(ranks) - 1) // _LANES * _LANES, -1, -_LANES):
        rank = ranks[at : at + _LANES]
        f, s = t.frequencies[rank], x[: len(rank)]
        full = s >= f << 19
        out.append((s[full] & 0xFFFF).astype(np.uint16))
        s = np.where(full, s >> 16, s)
        x[: len(rank)] = s // f << _BITS | slots[starts[rank] + s % f]
    return np.concatenate(out[::-1]) if out else np.zeros(0, np.uint16), x


def _decode(t: Tables, x: np.ndarray, words: np.ndarray, count: int) -> np.ndarray:
    out, word = np.zeros(-(-count // _LANES) * _LANES, np.uint8), 0
    for at in range(0, count, _LANES):
        s = x[: min(_LANES, count - at)]
        slot = s & (_SLOTS - 1)
        b = slot // _BUCKET
        e = np.where(slot % _BUCKET > t.last[b], t.second[b], t.first[b]).astype(np.int64)
        out[at : at + len(s)] = e >> 12 & 15
        s = ((e & 0xFFF) * (s >> _BITS) + slot + (e >> 16) - _SLOTS) & 0xFFFFFFFF
        wants = s < _LOWEST
        if word + (more := int(wants.sum())) > len(words):
            raise ValueError("the words of a stream end too early")
        s[wants] = s[wants] << 16 | words[word : word + more]
        word += more
        x[: len(s)] = s
    if word != len(words) or (x != _LOWEST).any():
        raise ValueError("a stream does not end where it should")
    return out[:count]
