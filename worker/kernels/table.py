"""Levels by a table: what `worker.kernels.uniform` does with integers, with any few numbers in [-1, 1]."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from worker.kernels.uniform import over


@dataclass(frozen=True)
class Table:
    """`values`, ascending float32s of magnitude 1 at most; the code of a level is its place. A number in the middle of two takes the lower one."""

    values: tuple[float, ...]
    floating = False  # the signs of its two ends differ, so a search tries both
    half_range = 1.0

    def tensor(self, device: torch.device) -> torch.Tensor:
        return torch.tensor(self.values, dtype=torch.float32, device="cpu").to(device)

    def round(self, x: torch.Tensor) -> torch.Tensor:
        """The nearest level, as float32."""
        return self.tensor(x.device)[self._places(x)]

    def codes(self, levels: torch.Tensor) -> torch.Tensor:
        """The places of levels, uint8."""
        return self._places(levels).to(torch.uint8)

    def _places(self, x: torch.Tensor) -> torch.Tensor:
        t = self.tensor(x.device)
        return torch.bucketize(x.contiguous(), over(t[1:] + t[:-1], 2.0))
