"""Rows that lie nearer to an earlier one that is kept than a distance."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_BLOCK = 512
_SLACK = 1e-5
"""Of the squares, with a share for the sum over d products: float32 tells only which pairs are worth measuring; they are, in float64."""


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
    around, scale = _around_mean(x)
    squares = np.einsum("ij,ij->i", around, around, dtype=np.float64)
    kept: list[int] = []
    pairs, distances = [], []
    for start in range(0, len(x), _BLOCK):
        stop = min(start + _BLOCK, len(x))
        before = np.array(kept, np.int64)
        found: list[list[int]] = [[] for _ in range(stop - start)]
        for a in range(0, len(before), 16 * _BLOCK):
            _candidates(found, around, squares, start, before[a : a + 16 * _BLOCK], limit / scale**2)
        _candidates(found, around, squares, start, np.arange(start, stop), limit / scale**2)
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


def _around_mean(x: np.ndarray) -> tuple[np.ndarray, float]:
    """Rows less their mean, over a power of two: what they have in common would drown their distances in float32, and squares of large numbers have no room there."""
    mean = x.mean(0, dtype=np.float64)
    peak = max((float(np.abs(x[i : i + _BLOCK] - mean).max()) for i in range(0, len(x), _BLOCK) if x.shape[1]), default=0.0)
    scale = 2.0 ** np.floor(np.log2(peak)) if peak > 0 else 1.0
    around = np.empty_like(x)
    for i in range(0, len(x), _BLOCK):
        around[i : i + _BLOCK] = (x[i : i + _BLOCK] - mean) / scale
    return around, scale


def _candidates(found: list[list[int]], x: np.ndarray, squares: np.ndarray, start: int, others: np.ndarray, limit: float) -> None:
    block = x[start : start + len(found)]
    own = squares[start : start + len(block), None]
    there = squares[others][None, :]
    d2 = own + there - 2 * (block @ x[others].T)
    slack = _SLACK + 2.0**-21 * np.sqrt(x.shape[1])
    for i, j in zip(*np.nonzero(d2 <= limit + slack * (own + there)), strict=True):
        if others[j] < start + i:
            found[i].append(int(others[j]))
