"""Entropy coding of quantized coefficients: a range coder (constriction) under integer tables that are chosen by what was coded before.

Coefficient after coefficient, all blocks of a picture: first those of one colour of a chessboard, then the others, which see four neighbours. How large the neighbours, and the
relatives of a coefficient in its own block, came out makes one of LEVELS; each (group of coefficients, half of the board, level) has a table, which the header names.
The first coefficients of all, the means, are coded as differences: every 16th block, then those in between, each predicted from the four around it that are known by then.

    tables used   GROUPS * 2 * LEVELS bits, packed: which have symbols of more than one value, or other than 0
                  u8 each: its table; 0 where all symbols are 0
    words         u32le of the range coder
"""

from __future__ import annotations

import constriction
import numpy as np

from worker.images import golomb
from worker.images.transform.basis import Basis
from worker.kernels.integer_tables import ESCAPE, SYMBOLS, TABLES, TOTAL, cheapest, tables

GROUPS, LEVELS = 12, 8
MOST = 1 << 14
"""Bound on a quantized coefficient."""
_EDGES = np.array([1, 2, 3, 5, 8, 13, 22])


class Damaged(Exception):
    """The stream is none of ours."""


def _models() -> list:
    return [constriction.stream.model.Categorical((row / TOTAL).astype(np.float64), perfect=False) for row in tables()]


def _groups(k: int) -> np.ndarray:
    """[K]: coefficients of like size, finer for the first."""
    return np.minimum(GROUPS - 1, (np.log2(np.arange(k) + 1) / np.log2(k + 1) * GROUPS).astype(np.int64))


def _group(basis: Basis, k: int) -> int:
    return int(_groups(len(basis.matrix))[k])


def _halves(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    board = (np.arange(rows)[:, None] + np.arange(columns)) % 2
    return board == 0, board == 1


def _levels(sizes: np.ndarray, basis: Basis, k: int, half: int) -> np.ndarray:
    """[rows, columns] 0 .. LEVELS - 1.

    Args:
        sizes: [K, rows, columns], the absolute values known so far, 0 elsewhere.
    """
    own = sum((sizes[r] for r in basis.relatives[k] if r >= 0), np.zeros(sizes.shape[1:], np.int64))
    total = 2 * own
    if k:
        total += _around(sizes[k - 1])
    if half:
        total += 2 * _around(sizes[k])
    return np.searchsorted(_EDGES, total, side="right")


def _around(plane: np.ndarray) -> np.ndarray:
    """Sum over the four neighbours of each block."""
    p = np.pad(plane, 1)
    return p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:]


def _stages(rows: int, columns: int):
    """(mask, offsets of the neighbours that are known, level), from coarse to fine."""
    r, c = np.arange(rows)[:, None], np.arange(columns)
    yield (r % 16 == 0) & (c % 16 == 0), (), 7
    for h, (across, along) in {8: (6, 6), 4: (5, 5), 2: (4, 3), 1: (2, 1)}.items():
        s = 2 * h
        yield (r % s == h) & (c % s == h), ((-h, -h), (-h, h), (h, -h), (h, h)), across
        yield ((r % s == 0) & (c % s == h)) | ((r % s == h) & (c % s == 0)), ((-h, 0), (h, 0), (0, -h), (0, h)), along


def _predictions(plane: np.ndarray, known: np.ndarray, mask: np.ndarray, offsets) -> np.ndarray:
    """Of the blocks of `mask`: the rounded mean of those neighbours that are within the picture and known, else 0."""
    rows, columns = np.nonzero(mask)
    total, count = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
    for dr, dc in offsets:
        r, c = rows + dr, columns + dc
        inside = (r >= 0) & (r < plane.shape[0]) & (c >= 0) & (c < plane.shape[1])
        there = np.zeros(len(rows), bool)
        there[inside] = known[r[inside], c[inside]]
        total[there] += plane[r[there], c[there]]
        count += there
    return np.where(count > 0, (2 * total + count) // np.maximum(2 * count, 1), 0)


def _passes(basis: Basis, rows: int, columns: int):
    """(k, half, mask of blocks, first class) in the order of coding, of coefficients that are not predicted."""
    groups, halves = _groups(len(basis.matrix)), _halves(rows, columns)
    for k in range(basis.predicted, len(basis.matrix)):
        for half, mask in enumerate(halves):
            if mask.any():
                yield k, half, mask, (groups[k] * 2 + half) * LEVELS


def encode(quantized: np.ndarray, basis: Basis) -> bytes:
    """Args: quantized: [rows, columns, K] int64, each below MOST in size."""
    planes = np.ascontiguousarray(quantized.transpose(2, 0, 1).astype(np.int32))
    sizes = np.zeros_like(planes)
    counts, runs = np.zeros((GROUPS * 2 * LEVELS, SYMBOLS), np.int64), []

    def add(which: int, values: np.ndarray) -> None:
        symbols = np.clip(values, -ESCAPE, ESCAPE) + ESCAPE
        counts[which] += np.bincount(symbols, minlength=SYMBOLS)
        runs.append((which, symbols, values))

    for k in range(basis.predicted):
        known = np.zeros(planes.shape[1:], bool)
        for mask, offsets, level in _stages(*known.shape):
            if mask.any():
                values = planes[k][mask] - _predictions(planes[k], known, mask, offsets)
                add(_group(basis, k) * 2 * LEVELS + level, values)
                sizes[k][mask] = np.abs(values)
                known |= mask
    for k, half, mask, first in _passes(basis, *quantized.shape[:2]):
        values, levels = planes[k][mask], _levels(sizes, basis, k, half)[mask]
        for level in np.unique(levels):
            add(first + level, values[levels == level])
        sizes[k][mask] = np.abs(values)
    used = (counts.sum(1) - counts[:, ESCAPE]) > 0
    chosen = np.where(used, cheapest(counts), -1)
    coder, models = constriction.stream.queue.RangeEncoder(), _models()
    for which, symbols, values in runs:
        if chosen[which] >= 0:
            coder.encode(symbols.astype(np.int32), models[chosen[which]])
            for value in values[np.abs(values) >= ESCAPE]:
                golomb.write(coder, int(abs(value)) - ESCAPE)
    head = np.packbits(used).tobytes() + bytes(int(c) for c in chosen[used])
    return head + coder.get_compressed().astype("<u4").tobytes()


def decode(data: bytes, basis: Basis, rows: int, columns: int) -> np.ndarray:
    """[rows, columns, K] int64.

    Raises:
        Damaged.
    """
    bitmap = GROUPS * 2 * LEVELS // 8
    used = np.unpackbits(np.frombuffer(data[:bitmap], np.uint8)).astype(bool)
    if len(used) != GROUPS * 2 * LEVELS or len(data) < bitmap + used.sum() or (len(data) - bitmap - used.sum()) % 4:
        raise Damaged("its tables are cut off")
    chosen = np.full(len(used), -1)
    chosen[used] = np.frombuffer(data[bitmap : bitmap + used.sum()], np.uint8)
    if chosen.max(initial=-1) >= TABLES:
        raise Damaged("it names a table that there is not")
    coder = constriction.stream.queue.RangeDecoder(np.frombuffer(data[bitmap + used.sum() :], "<u4").astype(np.uint32))
    models, planes = _models(), np.zeros((len(basis.matrix), rows, columns), np.int32)
    sizes = np.zeros_like(planes)

    def take(which: int, count: int) -> np.ndarray:
        if chosen[which] < 0:
            return np.zeros(count, np.int64)
        found = np.asarray(coder.decode(models[chosen[which]], count), np.int64) - ESCAPE
        for i in np.flatnonzero(np.abs(found) == ESCAPE):
            found[i] = np.sign(found[i]) * (ESCAPE + golomb.read(coder, MOST.bit_length()))
        return found

    try:
        for k in range(basis.predicted):
            known = np.zeros((rows, columns), bool)
            for mask, offsets, level in _stages(rows, columns):
                if mask.any():
                    values = take(_group(basis, k) * 2 * LEVELS + level, int(mask.sum()))
                    planes[k][mask] = values + _predictions(planes[k], known, mask, offsets)
                    sizes[k][mask] = np.abs(values)
                    known |= mask
        for k, half, mask, first in _passes(basis, rows, columns):
            levels = _levels(sizes, basis, k, half)[mask]
            values = np.zeros(levels.shape, np.int64)
            for level in np.unique(levels):
                some = levels == level
                values[some] = take(first + level, int(some.sum()))
            planes[k][mask] = values
            sizes[k][mask] = np.abs(values)
    except (AssertionError, ValueError) as e:
        raise Damaged(str(e)) from None
    return planes.transpose(1, 2, 0).astype(np.int64)
