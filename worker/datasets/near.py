"""Rows that lie nearer to an earlier one that is kept than a distance."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_BLOCK = 512
_SLACK = 1e-5
"""Of the squares: float32 tells only which pairs are worth measuring; they are, in float64."""


def near(x: np.ndarray, distance: float, metric: str, progress: Callable[[int], None] = lambda n: None) -> tuple[np.ndarray, list[list[int]], list[float]]:
    """Go through rows float32 [n, d] in their order, and drop those that have a kept one within `distance`.

    Args:
        metric: euclidean, or cosine (1 less the cosine; a row of zeros is far from all).

    Returns:
        positions of the kept rows; [row, the kept row that it is nearest to] of all others; those distances.
    """
    if metric == "cosine":
        norms = np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
        x = (x / np.where(norms > 0, norms, 1)).astype(np.float32)
        alone = norms[:, 0] == 0
        limit = 2 * distance  # of |a - b|^2 = 2 (1 - cos)
    else:
        alone, limit = np.zeros(len(x), bool), distance * distance
    squares = np.einsum("ij,ij->i", x, x, dtype=np.float64)
    kept: list[int] = []
    pairs, distances = [], []
    for start in range(0, len(x), _BLOCK):
        stop = min(start + _BLOCK, len(x))
        block, before = x[start:stop], np.array(kept, np.int64)
        found: list[list[int]] = [[] for _ in range(stop - start)]
        for a in range(0, len(before), 16 * _BLOCK):
            _candidates(found, block, x, squares, start, before[a : a + 16 * _BLOCK], limit)
        _candidates(found, block, x, squares, start, np.arange(start, stop), limit)
        here = set()
        for i in range(start, stop):
            others = [j for j in found[i - start] if j < start or j in here]
            best, least = -1, np.inf
            if others and not alone[i]:
                others = [j for j in others if not alone[j]]
                exact = ((x[others].astype(np.float64) - x[i].astype(np.float64)) ** 2).sum(1) if others else np.empty(0)
                if len(exact) and exact.min() <= limit * (1 + 1e-12):
                    best, least = others[int(exact.argmin())], float(exact.min())
            if best >= 0:
                pairs.append([i, best])
                distances.append(least / 2 if metric == "cosine" else float(np.sqrt(least)))
            else:
                kept.append(i)
                here.add(i)
        progress(stop - start)
    return np.array(kept, np.int64), pairs, distances


def _candidates(found: list[list[int]], block: np.ndarray, x: np.ndarray, squares: np.ndarray, start: int, others: np.ndarray, limit: float) -> None:
    own = squares[start : start + len(block), None]
    there = squares[others][None, :]
    d2 = own + there - 2 * (block @ x[others].T)
    for i, j in zip(*np.nonzero(d2 <= limit + _SLACK * (own + there)), strict=True):
        if others[j] < start + i:
            found[i].append(int(others[j]))
