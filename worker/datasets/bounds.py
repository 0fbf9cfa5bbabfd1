"""Numbers on a grid so fine that none moves further than a bound allows.

An absolute bound b takes the multiples of about 2 b. A relative bound r takes, between one power of two and the next, numbers whose ratio is
(1 + r) / (1 - r): the same grid in each, so that a number is a power of two times an entry of one table. The table is made by repeated multiplication
in float64, which gives the same on any machine.

What the grid gives is rounded to the dtype, compared in float64 with the original, and where it is too far off (or NaN, infinite, too large for a
code) the original is kept as it is: an exception.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

_MOST = 1 << 52
"""Of a code: float64 has all whole numbers up to twice that."""
_TABLE = 1 << 20
_LARGEST = 1e300
"""Of a step, which stays finite whatever the bound."""
_TINY = -1000
"""The least power of two of a relative grid; smaller numbers are exceptions."""


@dataclass(frozen=True)
class Grid:
    """Args: step: of an absolute grid, 0 for a relative one. ratio: from one number to the next of a relative grid, at most."""

    step: float = 0.0
    ratio: float = 1.0


def grid_of(values: np.ndarray, absolute: float | None, relative: float | None) -> Grid | None:
    """The coarsest grid that keeps a bound for (nearly) all of `values`, floats [n]; None where their dtype is no finer than it, so that nothing is gained.

    Rounding to the dtype costs up to half a spacing, which an absolute grid leaves room for.
    """
    finite = np.abs(values[np.isfinite(values)])
    if absolute is not None:
        large = np.quantile(finite.astype(np.float64), 0.999, method="lower") if len(finite) else 0.0
        room = absolute - float(np.spacing(values.dtype.type(large))) / 2
        return Grid(step=min(2 * room, _LARGEST)) if room > absolute / 4 and math.isfinite(1 / room) else None
    room = relative - float(np.finfo(values.dtype).eps) / 2
    return Grid(ratio=min((1 + room) / (1 - room), 2.0)) if room > relative / 4 and 1 / room < _TABLE else None


@cache
def _table(ratio: float) -> np.ndarray:
    """From 1 up to less than 2, float64."""
    count = int(math.log(2) / math.log(ratio)) + 2
    table = np.multiply.accumulate(np.concatenate([[1.0], np.full(count, ratio)]))
    return table[table < 2.0]


def codes(values: np.ndarray, grid: Grid) -> np.ndarray:
    """int64 [n]; whatever for what has no code."""
    x = values.astype(np.float64)
    x = np.where(np.isfinite(x), x, 0.0)
    if grid.step:
        with np.errstate(over="ignore"):
            found = np.rint(x / grid.step)
        return np.where(np.abs(found) < _MOST, found, 0).astype(np.int64)
    table = _table(grid.ratio)
    mantissa, exponent = np.frexp(np.abs(x))  # in [0.5, 1)
    mantissa, exponent = mantissa * 2, exponent - 1
    above = np.searchsorted(table, mantissa)  # the first that is not smaller
    lower, upper = table[np.maximum(above - 1, 0)], np.append(table, 2.0)[above]
    nearest = np.where((above > 0) & (mantissa - lower < upper - mantissa), above - 1, above)
    place = (exponent - _TINY) * len(table) + nearest
    return np.where((x == 0) | (exponent < _TINY), 0, np.sign(x) * (place + 1)).astype(np.int64)


def values_of(found: np.ndarray, grid: Grid, dtype: np.dtype) -> np.ndarray:
    """What codes int64 [n] stand for, in `dtype`."""
    with np.errstate(over="ignore", invalid="ignore"):
        if grid.step:
            return (found.astype(np.float64) * grid.step).astype(dtype)
        table = _table(grid.ratio)
        place = np.abs(found) - 1
        exponent = np.clip(place // len(table) + _TINY, -1100, 1100).astype(np.int32)
        return np.where(found == 0, 0.0, np.sign(found) * np.ldexp(table[place % len(table)], exponent)).astype(dtype)


def misses(values: np.ndarray, decoded: np.ndarray, absolute: float | None, relative: float | None) -> np.ndarray:
    """bool [n]: where the bound does not hold, in float64. What is not finite has to have the same bits; so has -0.0, which a grid has not."""
    a, b = values.astype(np.float64), decoded.astype(np.float64)
    bits = np.dtype(f"u{values.dtype.itemsize}")
    same = values.view(bits) == decoded.view(bits)
    with np.errstate(invalid="ignore", over="ignore"):
        close = np.abs(a - b) <= (absolute if absolute is not None else relative * np.abs(a))
    return ~(same | (np.isfinite(a) & np.isfinite(b) & close & ((a != 0) | ~np.signbit(a))))
