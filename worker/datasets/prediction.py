"""Whole numbers of [n, d], each column told from those before it, as far as rows that were read earlier say how.

Columns of embeddings or of sensors move together. With the covariance of the rows so far, K = L D L^T (L unit lower triangular), the best linear guess
of column j from columns 0..j-1 leaves row j of L^-1 x, of variance D[j]: as much is gained as by turning the rows into their principal axes, and every
value keeps its own bound. Nothing of it is stored: who decodes has the same rows and finds the same covariance.

For that, all must come out the same on any machine. Sums of products are of whole numbers below 2^53, which float64 adds without rounding, in any order.
L^-1 is made by single multiplications, subtractions, divisions and roots, which IEEE 754 rounds in one way (no library's blocks, no fused operations).
"""

from __future__ import annotations

import math

import numpy as np

SHIFT = 10
"""Bits of the fraction of a coefficient."""
GROUP = 512
"""Columns that are told from one another: the work grows with their third power."""
RIDGES = (0.1, 1.0)
"""How many rows of uncorrelated columns are added to those that were seen."""
_EXACT = float(1 << 52)
_ENOUGH = 64
"""Rows for each column; more say nothing new."""
_BLOCK = 32


class Covariance:
    """Of the rows seen so far, [d, d]."""

    def __init__(self, width: int):
        self.width, self.count = width, 0
        self.sums, self.products = np.zeros(width), np.zeros((width, width))
        self.largest = 0.0
        self._known: dict[float, tuple[np.ndarray, np.ndarray]] = {}

    def add(self, rows: np.ndarray) -> None:
        """Args: rows: int64 [n, d]. Left out, once there are enough, or where sums would round."""
        largest = max(self.largest, float(np.abs(rows).max(initial=0)))
        if self.count >= _ENOUGH * self.width or largest * largest * (self.count + len(rows)) >= _EXACT:
            return
        x = rows.astype(np.float64)
        self.sums, self.products = self.sums + x.sum(0), self.products + x.T @ x
        self.count, self.largest = self.count + len(rows), largest
        self._known = {}

    @property
    def mean(self) -> np.ndarray:
        return np.rint(self.sums / max(self.count, 1))

    def coefficients(self, ridge: float) -> tuple[np.ndarray, np.ndarray]:
        """Whole numbers [d, d], strictly lower triangular: 2^SHIFT times how column j is guessed from those before it; and the deviations that are left, [d]."""
        if ridge not in self._known:
            mean = self.sums / self.count
            cov = self.products / self.count - mean[:, None] * mean[None, :]
            own = np.maximum(cov.diagonal(), 0.0) + 1 / 12
            cov = cov * (self.count / (self.count + ridge * self.width))
            cov[np.arange(self.width), np.arange(self.width)] = own
            self._known[ridge] = _solve(cov)
        return self._known[ridge]


def _solve(cov: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Column by column, each operation on its own."""
    d = len(cov)
    rest, inverse = cov.copy(), np.eye(d)
    left = np.empty(d)
    for k in range(d):
        left[k] = max(rest[k, k], 1 / 12)
        if k + 1 < d:
            factor = rest[k + 1 :, k] / left[k]
            rest[k + 1 :, k + 1 :] = rest[k + 1 :, k + 1 :] - factor[:, None] * rest[None, k, k + 1 :]
            inverse[k + 1 :, : k + 1] = inverse[k + 1 :, : k + 1] - factor[:, None] * inverse[None, k, : k + 1]
    return np.rint(-np.tril(inverse, -1) * (1 << SHIFT)), np.sqrt(left)


def fits(centred: np.ndarray, coefficients: np.ndarray) -> bool:
    """Whether all sums are exact, for centred rows float64 [n, d]."""
    most = float(np.abs(centred).max(initial=0))
    return most * max(float(np.abs(coefficients).sum(1).max(initial=0)), 1.0) < _EXACT / 2


def _guess(sums: np.ndarray) -> np.ndarray:
    return np.floor((sums + (1 << (SHIFT - 1))) / (1 << SHIFT))


def remainders(centred: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """What the guesses leave, of centred rows, float64 [n, d]."""
    return centred - _guess(centred @ coefficients.T)


def rows_of(left: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """The centred rows whose `remainders` are `left`, float64 [n, d]."""
    n, d = left.shape
    columns = np.empty((d, n))
    for start in range(0, d, _BLOCK):
        stop = min(start + _BLOCK, d)
        base = coefficients[start:stop, :start] @ columns[:start] if start else np.zeros((stop - start, n))
        for j in range(start, stop):
            known = base[j - start] + (coefficients[j, start:j] @ columns[start:j] if j > start else 0.0)
            columns[j] = left[:, j] + _guess(known)
    return columns.T


def bits(left: np.ndarray) -> float:
    """About how many bits whole numbers [n, d] take, each column by its own spread."""
    deviation = np.sqrt(np.maximum((left * left).mean(0), 1 / 12)) if len(left) else np.ones(left.shape[1])
    return len(left) * float(np.log2(deviation * math.sqrt(2 * math.pi * math.e)).sum())
