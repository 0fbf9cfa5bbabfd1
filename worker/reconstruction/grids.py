"""The scheme of a quantization step as `worker.kernels.compensation` asks for it: parameters of some inputs when their turn comes, then one input at a time."""

from __future__ import annotations

from dataclasses import replace

import torch

from app.recipe import Quantize
from worker.encoded import Grid, Quantized
from worker.schemes import Parameters, assembled, joined, scheme_of, single


class Columns:
    """See `worker.kernels.compensation.Grid`.

    Args:
        matrix: [O, I] of any floating dtype, finite.
        scale_dtype: see `worker.schemes.scheme_of`.
        zero: whether 0 is to have a level, though there is none in the matrix yet.
    """

    def __init__(self, matrix: torch.Tensor, step: Quantize, scale_dtype: torch.dtype | None, zero: bool):
        scheme = scheme_of(step, matrix, scale_dtype)
        self.step, self.scheme = step, replace(scheme, zero=scheme.zero or (zero and scheme.offset == "float"))
        self.size = scheme.span if step.strategy == "group" else max(1, matrix.shape[1])
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

    def quantized(self, codes: torch.Tensor, transposed: bool) -> Quantized | Grid:
        """Args: codes: [O, I], as `round` gave them."""
        return assembled(self.scheme, self.scheme.stored(codes), joined([self.found[k] for k in sorted(self.found)], 1), self.step, transposed)


class Ordered:
    """A grid whose inputs come in another order: its parameters are found first, of the values as they are then.

    Args:
        order: int64 [I]: input order[j] of the matrix is the j-th.
        w: float32 [O, I], in the matrix's own order.
        weight: [I], likewise.
    """

    def __init__(self, grid: Columns, order: torch.Tensor, w: torch.Tensor, weight: torch.Tensor):
        self.grid, self.order, self.size = grid, order.tolist(), 1
        for start in range(0, w.shape[1], grid.size):
            group = slice(start, start + grid.size)
            grid.begin(start, w[:, group], weight[group])

    def begin(self, start: int, x: torch.Tensor, weight: torch.Tensor) -> None:
        """All are there."""

    def round(self, j: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.grid.round(self.order[j], x)
