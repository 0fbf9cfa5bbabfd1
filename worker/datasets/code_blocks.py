"""Codes of [n, d] as frames, block by block; each tells the next ones how its columns go together (`worker.datasets.prediction`).

    block:  one part for each group of columns:  ridge: u8 (0: nothing is guessed, else a position in RIDGES, from 1) | integers, column after column,
            those of the least spread first
"""

from __future__ import annotations

import numpy as np

from worker.datasets import integers, parts
from worker.datasets.prediction import GROUP, RIDGES, Covariance, bits, fits, remainders, rows_of
from worker.datasets.refusals import damaged

_CENTRED = 1 << 50
FIRST = 256
"""Rows of the first block; the later ones are half as many as there were before them, and no more than memory wants."""


def block_rows(before: int, left: int, most: int) -> int:
    """How many rows the next block has, of `left`, where `before` have gone."""
    return min(left, most, max(FIRST, before // 2))


class CodeBlocks:
    """Either end of the stream: use `encode` alone or `decode` alone, block after block.

    Args:
        width: d.
        linear: whether codes are multiples of something, so that one may be told from others; those of a relative grid are logarithms with a sign.
    """

    def __init__(self, width: int, linear: bool = True):
        self.width, self.linear = width, linear
        self.groups = [(a, min(a + GROUP, width), Covariance(min(a + GROUP, width) - a)) for a in range(0, width, GROUP)]

    def encode(self, codes: np.ndarray) -> bytes:
        """Args: codes: int64 [n, d]."""
        found = []
        for start, stop, seen in self.groups:
            part = codes[:, start:stop]
            found.append(_encode(part, seen))
            if self.linear:
                seen.add(part)
        return parts.join(found) if len(found) < 256 else _many(found)

    def decode(self, data: bytes, count: int) -> np.ndarray:
        """int64 [count, d]. Raises: InputRefused: invalid-dataset."""
        out = np.empty((count, self.width), np.int64)
        found = parts.split(data, len(self.groups)) if len(self.groups) < 256 else _split_many(data, len(self.groups))
        for (start, stop, seen), part in zip(self.groups, found, strict=True):
            out[:, start:stop] = _decode(part, count, seen)
            if self.linear:
                seen.add(out[:, start:stop])
        return out


def _many(found: list[bytes]) -> bytes:
    """More parts than one byte counts, as parts of parts."""
    return parts.join([parts.join(found[i : i + 255]) for i in range(0, len(found), 255)])


def _split_many(data: bytes, count: int) -> list[bytes]:
    sizes = [min(255, count - i) for i in range(0, count, 255)]
    return [p for outer, n in zip(parts.split(data, len(sizes)), sizes, strict=True) for p in parts.split(outer, n)]


def _encode(codes: np.ndarray, seen: Covariance) -> bytes:
    choice, left, order = 0, codes, np.arange(codes.shape[1])
    plain = bytes([0]) + integers.encode(np.ascontiguousarray(codes.T).reshape(-1))
    if seen.count and seen.width > 1 and len(codes) and np.abs(codes).max() < _CENTRED:
        centred = codes - seen.mean
        best = bits(centred) if fits(centred, np.zeros((1, 1))) else np.inf
        for i, ridge in enumerate(RIDGES):
            coefficients, deviations = seen.coefficients(ridge)
            if fits(centred, coefficients) and (cost := bits(tried := remainders(centred, coefficients))) < best:
                choice, left, best, order = i + 1, tried.astype(np.int64), cost, np.argsort(deviations, kind="stable")
    if not choice:
        return plain
    return min(plain, bytes([choice]) + integers.encode(np.ascontiguousarray(left.T[order]).reshape(-1)), key=len)


def _decode(data: bytes, count: int, seen: Covariance) -> np.ndarray:
    if not data or data[0] > len(RIDGES):
        raise damaged("a block of codes is of no known form")
    flat = integers.decode(data[1:], count * seen.width).reshape(seen.width, count)
    if not data[0]:
        return flat.T
    if not seen.count:
        raise damaged("a block of codes is told from blocks before it, and there are none")
    coefficients, deviations = seen.coefficients(RIDGES[data[0] - 1])
    left = np.empty_like(flat)
    left[np.argsort(deviations, kind="stable")] = flat
    if np.abs(left).max(initial=0) >= _CENTRED:
        raise damaged("a block of codes holds numbers that none was made of")
    with np.errstate(over="ignore", invalid="ignore"):
        rows = rows_of(left.T.astype(np.float64), coefficients) + seen.mean
    if not (np.abs(rows) < _CENTRED * 2).all():
        raise damaged("a block of codes holds numbers that none was made of")
    return rows.astype(np.int64)
