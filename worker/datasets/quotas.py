"""How many rows of each class are kept."""

from __future__ import annotations

import numpy as np


def quotas(sizes: np.ndarray, keep: int, balance: str) -> np.ndarray:
    """Args:
        sizes: rows that may be kept, by class, int [C].
        keep: rows to keep of all, at most their sum.
        balance: `proportional` to the sizes (largest remainders, the first class among equals), or `equal`, as far as a class has so many.

    Returns:
        int64 [C], of sum `keep`.
    """
    if balance == "proportional":
        exact = keep * sizes / sizes.sum()
        found = np.floor(exact).astype(np.int64)
        for c in np.argsort(-(exact - found), kind="stable")[: keep - found.sum()]:
            found[c] += 1
        return found
    found = np.zeros(len(sizes), np.int64)
    left = keep
    while left:
        open_ = np.flatnonzero(found < sizes)
        share = max(1, left // len(open_))
        for c in open_:
            add = min(share, int(sizes[c] - found[c]), left)
            found[c] += add
            left -= add
    return found
