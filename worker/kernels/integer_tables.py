"""Probabilities as integers: two-sided geometric distributions with a weight of their own at zero, by recurrences in integers alone, so that every machine has the same tables.

    table[zero, tail][ESCAPE + q]  for q = -ESCAPE .. ESCAPE, sums to TOTAL; |q| = ESCAPE says that |q| - ESCAPE follows, see `golomb`
    P(0) by `zero` of ZEROS; P(+-k), k > 0, falls by the ratio of `tail` of TAILS
"""

from __future__ import annotations

from functools import cache

import numpy as np

ESCAPE = 15
SYMBOLS = 2 * ESCAPE + 1
TOTAL = 1 << 16
ZEROS = (600, 3000, 7000, 12000, 18000, 24000, 30000, 36000, 42000, 47000, 52000, 56000, 59500, 62000, 63800, 64800, 65200, 65400)
"""Of TOTAL."""
TAILS = (500, 4000, 9000, 15000, 21000, 27000, 33000, 39000, 45000, 51000, 56000, 60000, 63000)
"""Of TOTAL: the share of a magnitude that the next one has."""
TABLES = len(ZEROS) * len(TAILS)


@cache
def tables() -> np.ndarray:
    """[TABLES, SYMBOLS] int64, each row at least 1 everywhere; row `zero * len(TAILS) + tail`."""
    rows = np.empty((TABLES, SYMBOLS), np.int64)
    for z, zero in enumerate(ZEROS):
        for t, ratio in enumerate(TAILS):
            weights, left = [], 1 << 30
            for _ in range(ESCAPE - 1):
                weights.append(left * (TOTAL - ratio) // TOTAL)
                left = left * ratio // TOTAL
            weights.append(left)
            room = (TOTAL - zero) // 2 - ESCAPE
            side = [1 + room * w // (1 << 30) for w in weights]
            rows[z * len(TAILS) + t] = [*side[::-1], TOTAL - 2 * sum(side), *side]
    return rows


@cache
def costs() -> np.ndarray:
    """[TABLES, SYMBOLS] float64: bits of each symbol. For an encoder's choices only."""
    return 16 - np.log2(tables())


def cheapest(counts: np.ndarray) -> np.ndarray:
    """[N, SYMBOLS] counts of symbols -> [N] int64: the table that codes each row in the fewest bits."""
    return (counts @ costs().T).argmin(1)
