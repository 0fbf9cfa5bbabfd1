"""The rows nearest to the centres of as many clusters as are to be kept (k-means, Lloyd 1982)."""

from __future__ import annotations

import numpy as np

_DIMENSIONS, _SAMPLE, _STEPS, _BLOCK = 32, 20_000, 10, 1024


def project(x: np.ndarray, seed: int) -> np.ndarray:
    """float32 [n, at most 32]: along the axes of the largest variance, which say most of what lies near to what."""
    if x.shape[1] <= _DIMENSIONS:
        return x
    some = x[np.sort(np.random.default_rng(seed).choice(len(x), min(len(x), _SAMPLE), replace=False))].astype(np.float64)
    mean = some.mean(0)
    _, axes = np.linalg.eigh((some - mean).T @ (some - mean))
    return (x - mean.astype(np.float32)) @ axes[:, -_DIMENSIONS:].astype(np.float32)


def coreset(x: np.ndarray, keep: int, seed: int) -> np.ndarray:
    """Positions of `keep` of the rows float32 [n, d], in rising order, int64."""
    r = np.random.default_rng(seed)
    if keep >= len(x):
        return np.arange(len(x))
    centres = x[r.choice(len(x), keep, replace=False)].copy()
    for _ in range(_STEPS):
        which, _ = _nearest(x, centres)
        counts = np.bincount(which, minlength=keep)
        sums = np.zeros_like(centres)
        np.add.at(sums, which, x)
        filled = counts > 0
        centres[filled] = sums[filled] / counts[filled, None]
    which, _ = _nearest(centres, x)  # of each centre, the row that lies nearest
    chosen = np.unique(which)
    rest = np.setdiff1d(np.arange(len(x)), chosen)
    return np.sort(np.concatenate([chosen, r.choice(rest, keep - len(chosen), replace=False)]))  # centres may share a row


def _nearest(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row of a, the position of the nearest of b, and the squared distance less |a|^2."""
    which, least = np.empty(len(a), np.int64), np.empty(len(a), np.float32)
    squares = (b * b).sum(1)
    for i in range(0, len(a), _BLOCK):
        d = squares[None] - 2 * (a[i : i + _BLOCK] @ b.T)
        which[i : i + _BLOCK] = d.argmin(1)
        least[i : i + _BLOCK] = d.min(1)
    return which, least
