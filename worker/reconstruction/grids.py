"""The scheme of a quantization step as `worker.kernels.compensation` asks for it: parameters of some inputs when their turn comes, then one input at a time."""

from __future__ import annotations

from dataclasses import replace

import torch

from app.recipe import Quantize
from worker.kernels.compensation import Line
from worker.schemes import Parameters, Scheme, joined, single


class Columns:
    """See `worker.kernels.compensation.Grid`.

    Args:
        columns: I of the matrix [O, I].
    """

    def __init__(self, scheme: Scheme, step: Quantize, columns: int):
        self.step, self.scheme = step, scheme
        self.size = scheme.span if step.strategy == "group" else max(1, columns)
        self.found: dict[int, Parameters] = {}

    def begin(self, start: int, x: torch.Tensor, weight: torch.Tensor) -> None:
        mean = weight.mean()
        importance = weight / mean if bool(mean > 0) else torch.ones_like(weight)
        scheme, x = self.scheme, single(x, self.scheme)
        if self.step.strategy == "tensor":
            scheme, importance, x = replace(scheme, group_size=max(1, x.numel())), importance.repeat(len(x)), x.reshape(1, -1)
        self.found[start // self.size] = scheme.parameters(x, importance)

    def round(self, j: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = self.found[j // self.size].group(j % self.size // self.scheme.group_size)
        codes = self.scheme.encode(single(x, self.scheme), found)
        return codes, self.scheme.decode(codes, found)

    def line(self, j: int) -> Line | None:
        scheme = self.scheme
        if not scheme.compiled or scheme.levels.floating:
            return None
        found = self.found[j // self.size].group(j % self.size // scheme.group_size)
        return Line(found.scale, found.zero_point, scheme.levels.low, scheme.levels.high)

    def begin_all(self, w: torch.Tensor, weight: torch.Tensor) -> None:
        """`begin` of every group. Args: w: [O, I]. weight: [I]."""
        for start in range(0, w.shape[1], self.size):
            group = slice(start, start + self.size)
            self.begin(start, w[:, group], weight[group])

    def parameters(self) -> Parameters:
        """Of all groups, once each has had its turn."""
        return joined([self.found[k] for k in sorted(self.found)], 1)


class Ordered:
    """A grid whose inputs come in another order: its parameters are found first, of the values as they are then.

    Args:
        order: int64 [I]: input order[j] of the matrix is the j-th.
        w: float32 [O, I], in the matrix's own order.
        weight: [I], likewise.
    """

    def __init__(self, grid: Columns, order: torch.Tensor, w: torch.Tensor, weight: torch.Tensor):
        self.grid, self.order, self.size = grid, order.tolist(), 1
        grid.begin_all(w, weight)

    def begin(self, start: int, x: torch.Tensor, weight: torch.Tensor) -> None:
        """All are there."""

    def round(self, j: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.grid.round(self.order[j], x)

    def line(self, j: int) -> Line | None:
        return self.grid.line(self.order[j])
