"""Floats of two or four bytes coded as what they are: numbers about the scale of their row and column. Level `max` of the lossless coder.

t is the top 16 bits of a value, e = (t & 0x7fff) >> low its exponent. It becomes

    rank    top - e, or 15 where that is not 0 to 14; then e itself is the next of the escapes
    lead    the first `depth` bits of the mantissa
    rest    the sign and the other low - depth bits of t, and the bytes below t

    0   u8   low         bits of the mantissa in t: 7 of bf16 and fp32, 10 of fp16
    1   u8   top         the largest exponent that is none of the escapes
    2   u8   depth       0 to 4
    3   u8   0
    4   u32  columns     0: there are no scales
    8   u32  phase       column of the first value
    12  u32  scales      bytes of
    ..       a zstd frame of i8 row[ceil((phase + n) / columns)], i8 column[columns]
    ..  u32  tables      bytes of
    ..       a zstd frame of u16 frequency[16][16] of ranks in each context, u16 frequency[16][16] of leads in each rank, low bytes first, then high ones
    ..       ranks, then leads: streams of turns.py
    ..  u8   escapes     as many as the chunk's head says
    ..       rests: n codes of 1 + low - depth bits, dense (bits.py)
    ..       a plane table and the planes (codings.py) of the bytes below, the most significant first: w - 2

A rank's context is min(15, max(0, 8 + row + column)), 0 where there are no scales; a lead's is the rank. Scales are in quarters of a factor of 2: with s the exponents' distance from
`top`, no more than 11, a row's is how far the mean of its s lies from that of all, rounded, and so is a column's. Integers only, so that every machine finds the same.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np

from worker.kernels import native, native_scaled, turns
from worker.kernels.bits import pack_bits, packed_bytes, unpack_bits
from worker.kernels.codings import CorruptPayload, compress, expand, frame_content, read_table, squeeze, table

FROM = 1 << 12
"""Values that pay for the tables."""
ESCAPE = 15
_HEAD, _SIZE = struct.Struct("<BBBBIII"), struct.Struct("<I")
_DEPTH, _STEP, _FAR, _MIDDLE = 3, 4, 11, 8
_LEAST, _ROWS = 16, 16  # columns, and rows of them, that pay for scales
_ESCAPES = 32  # at most one value in so many
_BRAIN, _HALF = 7, 10  # bits of t below the exponent
_TABLES = 2 * turns.SYMBOLS * turns.SYMBOLS


class Place(NamedTuple):
    """Where values lie in their matrix, row by row: its `columns`, and the column of the first one."""

    columns: int
    phase: int


class Fields(NamedTuple):
    """uint8 [n] each, and the bytes below t, [w - 2, n]."""

    ranks: np.ndarray
    leads: np.ndarray
    rests: np.ndarray
    below: np.ndarray
    escapes: np.ndarray


def encode(values: np.ndarray, place: Place) -> tuple[bytes, int] | None:
    """The body and how many escapes it has; None where values are not about one scale.

    Args:
        values: `<u2` or `<u4` [n], the bits of floats.
    """
    window = _window(values)
    if len(values) < FROM or window is None:
        return None
    low, top = window
    parts = split(values, low, top, _DEPTH)
    contexts, place, frame = _contexts(parts.ranks, place)
    ranks, leads = (turns.frequencies(turns.counted(*pair)) for pair in ((parts.ranks, contexts), (parts.leads, parts.ranks)))
    both = np.concatenate([ranks.reshape(-1), leads.reshape(-1)]).astype(np.uint16)
    frequency = compress("level", np.concatenate([both & 0xFF, both >> 8]).astype(np.uint8))
    coded = turns.encode(parts.ranks, contexts, ranks), turns.encode(parts.leads, parts.ranks, leads)
    head = _HEAD.pack(low, top, _DEPTH, 0, *place, len(frame))
    return b"".join([head, frame, _SIZE.pack(len(frequency)), frequency, *coded, parts.escapes, pack_bits(parts.rests, 1 + low - _DEPTH), table([squeeze(p, "huffman") for p in parts.below])]), len(parts.escapes)


def decode(body: memoryview, width: int, count: int, escapes: int) -> np.ndarray:
    """The inverse: `<u2` or `<u4` [count].

    Raises:
        CorruptPayload: a length, a frame, a table or a stream is wrong.
    """
    if len(body) < _HEAD.size:
        raise CorruptPayload("the head of scaled floats is cut off")
    low, top, depth, zero, columns, phase, size = _HEAD.unpack_from(body)
    if low not in (_BRAIN, _HALF) or (low == _HALF and width != 2) or depth > 4 or zero or columns > count or phase >= max(1, columns):
        raise CorruptPayload(f"scaled floats with {low} bits of mantissa, {depth} of them coded, column {phase} of {columns}")
    rows = -(-(phase + count) // columns) if columns else 0
    scales = _frame(body[_HEAD.size :][:size], rows + columns).view(np.int8)
    body = body[_HEAD.size + size :]
    if len(body) < _SIZE.size:
        raise CorruptPayload("the tables of scaled floats are cut off")
    (size,) = _SIZE.unpack_from(body)
    tables = _frame(body[_SIZE.size :][:size], 2 * _TABLES)
    frequency = (tables[:_TABLES] | tables[_TABLES:].astype(np.int64) << 8).reshape(2, turns.SYMBOLS, turns.SYMBOLS)
    sums = frequency.sum(axis=2)
    if ((sums != 0) & (sums != turns.SUM)).any() or frequency[1, :, 1 << depth :].any():
        raise CorruptPayload("the frequencies of scaled floats do not come to 4096")
    try:
        ranks, rest = turns.decode(body[_SIZE.size + size :], spread(scales[:rows], scales[rows:], phase, count), frequency[0])
        leads, rest = turns.decode(rest, ranks, frequency[1])
    except ValueError as e:
        raise CorruptPayload(str(e)) from None
    bits = 1 + low - depth
    end = escapes + packed_bytes(count, bits)
    if len(rest) < end:
        raise CorruptPayload(f"{len(rest)} bytes of escapes and rests for {count} values")
    below = [expand(coding, data, count) for coding, data in read_table(rest[end:], width - 2)]
    parts = Fields(ranks, leads, unpack_bits(np.frombuffer(rest[escapes:end], np.uint8), bits, count), np.array(below, np.uint8).reshape(width - 2, count), np.frombuffer(rest[:escapes], np.uint8))
    try:
        return merge(parts, low, top, depth)
    except ValueError as e:
        raise CorruptPayload(str(e)) from None


def _frame(data: memoryview, size: int) -> np.ndarray:
    if not size:
        if len(data):
            raise CorruptPayload("a frame of scales where there are no columns")
        return np.zeros(0, np.uint8)
    content = frame_content(data, size)
    if len(content) != size:
        raise CorruptPayload(f"a frame of {len(content)} bytes where {size} belong")
    return content


def _window(values: np.ndarray) -> tuple[int, int] | None:
    """`low` and `top` of values of which most lie within 15 exponents; of a sample, so that what it misses is escaped."""
    sample = values[:: max(1, len(values) >> 14)]
    tops = sample >> 8 * (values.itemsize - 2) & 0x7FFF
    for low in (_BRAIN, _HALF)[: 1 + (values.itemsize == 2)]:
        held = np.cumsum(np.bincount(tops >> low, minlength=256))
        top = ESCAPE - 1 + int(np.argmax(held[ESCAPE - 1 :] - np.concatenate([[0], held[:-ESCAPE]])))
        within = int(held[top] - (held[top - ESCAPE] if top >= ESCAPE else 0))
        if (len(sample) - within) * _ESCAPES <= len(sample):
            return low, top
    return None


def split(values: np.ndarray, low: int, top: int, depth: int) -> Fields:
    """The fields of `<u2` or `<u4` [n]."""
    if native.available():
        return Fields(*native_scaled.fields(values, low, top, depth))
    t = values if values.itemsize == 2 else (values >> 16).astype(np.uint16)
    exponent = ((t & 0x7FFF) >> low).astype(np.uint8)
    ranks = np.minimum(np.uint8(top) - exponent, ESCAPE)  # below 0 it is large
    leads = (t >> low - depth).astype(np.uint8) & np.uint8((1 << depth) - 1)
    rests = (t & ((1 << low - depth) - 1) | t >> 15 << low - depth).astype(np.uint8)
    below = [(values >> 8 * i).astype(np.uint8) for i in reversed(range(values.itemsize - 2))]
    return Fields(ranks, leads, rests, np.stack(below) if below else np.zeros((0, len(values)), np.uint8), exponent[ranks == ESCAPE])


def merge(parts: Fields, low: int, top: int, depth: int) -> np.ndarray:
    """The inverse of `split`.

    Raises:
        ValueError: other than as many escapes, or one that is no exponent.
    """
    if int(parts.escapes.max(initial=0)) >> 15 - low:
        raise ValueError("an escape is no exponent")
    if native.available():
        return native_scaled.unfields(parts, low, top, depth)
    exponent, where = np.uint8(top) - parts.ranks, np.flatnonzero(parts.ranks == ESCAPE)
    if len(where) != len(parts.escapes):
        raise ValueError(f"{len(parts.escapes)} escapes where {len(where)} belong")
    exponent[where] = parts.escapes
    rests = parts.rests.astype(np.uint16)
    t = exponent.astype(np.uint16) << low & 0x7FFF | parts.leads.astype(np.uint16) << low - depth | rests & ((1 << low - depth) - 1) | rests >> low - depth << 15
    if not len(parts.below):
        return t
    return t.astype(np.uint32) << 16 | parts.below[0].astype(np.uint32) << 8 | parts.below[1]


def _contexts(ranks: np.ndarray, place: Place) -> tuple[np.ndarray, Place, bytes]:
    """The context of each rank, the place as it is stored, and the frame of scales: nothing but zeros where scales do not pay."""
    none = np.zeros(len(ranks), np.uint8)
    if place.columns < _LEAST or place.columns * _ROWS > len(ranks):
        return none, Place(0, 0), b""
    rows, columns = _scales(ranks, place)
    frame = compress("level", np.concatenate([rows, columns]).view(np.uint8))
    contexts = spread(rows, columns, place.phase, len(ranks))
    plain, scaled = (turns.encoded_bytes(turns.counted(ranks, c)) for c in (none, contexts))
    return (contexts, place, frame) if scaled + len(frame) < plain else (none, Place(0, 0), b"")


def _scales(ranks: np.ndarray, place: Place) -> tuple[np.ndarray, np.ndarray]:
    """int8 of rows and columns."""
    near = np.minimum(ranks, _FAR)
    count, columns = len(ranks), place.columns
    rows = -(-(place.phase + count) // columns)
    if native.available():
        by_row, by_column = native_scaled.sums(near, rows, columns, place.phase)
    else:
        whole = np.zeros((rows, columns), np.int64)
        whole.reshape(-1)[place.phase : place.phase + count] = near
        by_row, by_column = whole.sum(axis=1), whole.sum(axis=0)
    ends = np.minimum(np.arange(1, rows + 1) * columns, place.phase + count)
    of_row = np.diff(ends, prepend=place.phase)
    at = np.arange(columns)
    of_column = rows - (at < place.phase) - (at >= ends[-1] - (rows - 1) * columns)
    total = int(by_row.sum())

    def away(sums: np.ndarray, each: np.ndarray) -> np.ndarray:
        return np.where(each > 0, (2 * _STEP * (sums * count - total * each) + each * count) // (2 * np.maximum(each, 1) * count), 0).astype(np.int8)

    return away(by_row, of_row), away(by_column, of_column)


def spread(rows: np.ndarray, columns: np.ndarray, phase: int, count: int) -> np.ndarray:
    """The context of each of `count` values: uint8, of int8 scales; all 0 without any."""
    if not len(columns):
        return np.zeros(count, np.uint8)
    if native.available():
        return native_scaled.spread_scales(rows, columns, phase, count)
    both = _MIDDLE + rows[:, None].astype(np.int16) + columns
    return np.clip(both, 0, turns.SYMBOLS - 1).astype(np.uint8).reshape(-1)[phase : phase + count]
