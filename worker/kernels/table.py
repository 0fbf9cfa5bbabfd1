"""Levels by a table: what `worker.kernels.uniform` does with integers, with any few numbers in [-1, 1].

The nearest of them is found by cells: [-1, 1] is cut into so many that none has more than one of the middles between two levels, so that where x lies and
one comparison tell its level. Which cell a number belongs to is rounded, but never falls as x grows, so that the result is exact all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch


@dataclass(frozen=True)
class Table:
    """`values`, ascending float32s of magnitude 1 at most; the code of a level is its place. A number in the middle of two takes the lower one."""

    values: tuple[float, ...]
    floating = False  # the signs of its two ends differ, so a search tries both
    half_range = 1.0

    def tensor(self, device: torch.device) -> torch.Tensor:
        return _tensor(self.values, torch.float32, device)

    def round(self, x: torch.Tensor) -> torch.Tensor:
        """The nearest level, as float32."""
        return _picked(self.tensor(x.device), self._places(x))

    def codes(self, levels: torch.Tensor) -> torch.Tensor:
        """The places of levels, uint8."""
        return self._places(levels).to(torch.uint8)

    def _places(self, x: torch.Tensor) -> torch.Tensor:
        """int32, shaped like x."""
        count, before, middle = _cells(self.values)
        cell = ((x.clamp(-1, 1) + 1) * (count / 2)).to(torch.int32)
        above = x > _picked(_tensor(middle, torch.float32, x.device), cell)
        return _picked(_tensor(before, torch.int32, x.device), cell) + above


def _picked(t: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    return t.index_select(0, places.reshape(-1)).reshape(places.shape)


def _tensor(values: tuple, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device="cpu").to(device)


@cache
def _cells(values: tuple[float, ...]) -> tuple[int, tuple[int, ...], tuple[float, ...]]:
    """How many cells there are, a power of two; for each (and for 1 itself) how many middles lie before it, and the one in it, else infinity."""
    levels = np.array(values, np.float32)
    middles = (levels[1:] + levels[:-1]) * np.float32(0.5)
    count = 16
    while len(set(cells := ((middles + np.float32(1)) * np.float32(count / 2)).astype(int))) < len(middles):
        count *= 2
    inside = np.full(count + 1, np.inf, np.float32)
    inside[cells] = middles
    return count, tuple(np.searchsorted(cells, np.arange(count + 1)).tolist()), tuple(inside.tolist())
