"""Convolutions of integers, 3 x 3, whose results are the same on every machine.

Integers are carried in float64, and the sum of all products' sizes stays below 2^53, so that whatever order and however many threads a matrix product takes, it is exact.
Rounding divides by a power of two, upwards at a half.
"""

from __future__ import annotations

import numpy as np

EXACT = 1 << 53
_COLUMNS = 1 << 22  # values that are laid out at once


def bound(weight: np.ndarray, bias: np.ndarray, most: int) -> int:
    """Of the size of any sum in `convolved`, as it is before it is divided."""
    return int(np.abs(weight.astype(np.int64)).sum((1, 2, 3)).max(initial=0)) * most + int(np.abs(bias.astype(np.int64)).max(initial=0))


def convolved(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, shift: int | np.ndarray) -> np.ndarray:
    """round((weight * x + bias) / 2^shift), zeros around.

    Args:
        x: [I, H, W] float64, integers.
        weight: [O, I, 3, 3] int8. bias: [O] int32.
        shift: 0 to 30; one for all, or [O].

    Returns:
        [O, H, W] float64, integers.

    Raises:
        ValueError: sums might not be exact.
    """
    inputs, height, width = x.shape
    divisor = np.left_shift(1, np.asarray(shift, np.int64).reshape(-1, 1))
    half = divisor >> 1
    if bound(weight, bias, int(np.abs(x).max(initial=0))) + int(half.max()) >= EXACT:
        raise ValueError("sums of so large numbers are not exact")
    flat, added = weight.reshape(len(weight), -1).astype(np.float64), bias.astype(np.float64)[:, None] + half
    padded, out = np.pad(x, ((0, 0), (1, 1), (1, 1))), np.empty((len(weight), height, width))
    rows = max(1, _COLUMNS // (9 * inputs * width))
    for r in range(0, height, rows):
        n = min(rows, height - r)
        laid = np.stack([padded[:, r + dy : r + dy + n, dx : dx + width] for dy in range(3) for dx in range(3)], 1)
        out[:, r : r + n] = np.floor((flat @ laid.reshape(9 * inputs, -1) + added) / divisor).reshape(-1, n, width)
    return out
