"""Entropy coding of whole numbers, each of a level that both sides know, by a range coder (constriction).

A level says how far its numbers spread. Those of one level have one table for sizes 0 to ESCAPE; of wide ones the lowest bits stand beside it, as likely one way as the other; what is
beyond a table follows as a whole number. Tables are counted in training and stand in the model's file, so that nothing about them is computed where they are used.
"""

from __future__ import annotations

from math import erf

import constriction
import numpy as np

from worker.images import golomb
from worker.images.hyperprior.fixed import LEVELS, LOWEST, STEPS

ESCAPE = 15
TOTAL = 1 << 16
LONGEST = 22
"""Bits of a number."""
_KNOWN = 200
"""As many numbers as the normal distribution counts for in a table."""


def low_bits(level: int) -> int:
    """Of each number of a level: what is left of its spread is below 4."""
    return max(0, (level + LOWEST) // STEPS - 1)


def _split(values: np.ndarray, level: int) -> tuple[np.ndarray, np.ndarray]:
    bits = low_bits(level)
    moved = values + (1 << bits >> 1)
    return moved >> bits, moved & (1 << bits) - 1


def counted(values: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Tables of [LEVELS, ESCAPE] uint16: of TOTAL, the share of each size from 1 to ESCAPE, of one sign; what is left is that of 0.

    Args:
        values, levels: [N] int64, of training.
    """
    tables = np.empty((LEVELS, ESCAPE), np.uint16)
    for level in range(LEVELS):
        spread = 2.0 ** ((level + LOWEST) / STEPS - low_bits(level))
        below = np.array([erf((k - 0.5) / spread / 2**0.5) for k in range(1, ESCAPE + 1)] + [1.0])
        sizes = np.minimum(np.abs(_split(values[levels == level], level)[0]), ESCAPE)
        share = (np.bincount(sizes, minlength=ESCAPE + 1)[1:] + _KNOWN * np.diff(below)) / (len(sizes) + _KNOWN)
        tables[level] = 1 + np.floor((TOTAL / 2 - ESCAPE - 1) * share)
    return tables


def fits(tables: np.ndarray) -> bool:
    """Whether a stranger's tables are some."""
    return bool(tables.min() >= 1 and tables.sum(1, dtype=np.int64).max() < TOTAL // 2)


class Tables:
    """Args: tables: [LEVELS, ESCAPE] uint16, as `counted` makes them."""

    def __init__(self, tables: np.ndarray):
        side = tables.astype(np.int64)
        whole = np.concatenate([side[:, ::-1], TOTAL - 2 * side.sum(1, keepdims=True), side], 1)
        self._models = [constriction.stream.model.Categorical((row / TOTAL).astype(np.float64), perfect=False) for row in whole]

    def write(self, coder, values: np.ndarray, levels: np.ndarray) -> None:
        """Args: values, levels: [N] int64."""
        for level in np.unique(levels):
            high, low = _split(values[levels == level], level)
            coder.encode((np.clip(high, -ESCAPE, ESCAPE) + ESCAPE).astype(np.int32), self._models[level])
            for value in high[np.abs(high) >= ESCAPE]:
                golomb.write(coder, int(abs(value)) - ESCAPE)
            if low_bits(level):
                coder.encode(low.astype(np.int32), constriction.stream.model.Uniform(1 << low_bits(level)))

    def read(self, coder, levels: np.ndarray) -> np.ndarray:
        """[N] int64.

        Raises:
            ValueError, AssertionError: there is no such stream.
        """
        out = np.empty(levels.shape, np.int64)
        for level in np.unique(levels):
            here = levels == level
            high = np.asarray(coder.decode(self._models[level], int(here.sum())), np.int64) - ESCAPE
            for i in np.flatnonzero(np.abs(high) == ESCAPE):
                high[i] = np.sign(high[i]) * (ESCAPE + golomb.read(coder, LONGEST))
            bits = low_bits(level)
            low = np.asarray(coder.decode(constriction.stream.model.Uniform(1 << bits), len(high)), np.int64) if bits else 0
            out[here] = (high << bits) + low - (1 << bits >> 1)
        return out
