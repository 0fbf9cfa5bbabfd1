"""What a trained tensor may be: free, masked, or coded. Each knows its parameter, its moments, and how a gradient changes it."""

from __future__ import annotations

from typing import Protocol

import torch

from worker.kernels.adam import Moments, step
from worker.plan import TensorPlan


class Weight(Protocol):
    """`state` is what a snapshot holds, `best` what is kept of the best step so far: tensors by name; `restore` takes either."""

    parameter: torch.nn.Parameter

    def update(self, gradient: torch.Tensor, rate: float, penalty: tuple[str, float]) -> None: ...
    def best(self) -> dict[str, torch.Tensor]: ...
    def state(self) -> dict[str, torch.Tensor]: ...
    def restore(self, state: dict[str, torch.Tensor]) -> None: ...


class Masked:
    """Values of which a mask keeps some, or all: what a mask drops is 0 and stays so.

    Args:
        parameter: of the network; its memory is this one's own.
        plan: how the tensor is seen as a matrix; None for tensors that no step works on.
    """

    def __init__(self, parameter: torch.nn.Parameter, plan: TensorPlan | None = None):
        self.parameter, self.plan = parameter, plan
        self.moments = Moments.like(parameter)
        self.mask: torch.Tensor | None = None
        self.scale = spread(parameter)

    def prune(self, mask: torch.Tensor) -> None:
        """Args: mask: bool, the tensor's shape, True where a weight stays."""
        self.mask = mask
        for t in (self.parameter.data, self.moments.first, self.moments.second):
            t.mul_(mask)

    @torch.no_grad()
    def update(self, gradient: torch.Tensor, rate: float, penalty: tuple[str, float] = ("none", 0.0)) -> None:
        """One step of Adam in units of the tensor's own spread; then the penalty on its own, as it is not to be divided by the gradients' size (Loshchilov
        and Hutter, 2019): l2 shrinks weights by a share, l1 moves them to 0 by a constant (in units of the spread)."""
        if self.mask is not None:
            gradient = gradient * self.mask
        rate *= self.scale
        values = self.parameter.data
        values -= step(self.moments, gradient, rate)
        kind, strength = penalty
        if self.plan is not None and kind == "l2":
            values *= 1 - rate * strength / self.scale
        elif self.plan is not None and kind == "l1":
            values.copy_(values.sign() * (values.abs() - rate * strength).clamp_min_(0))
        if self.mask is not None:
            values.mul_(self.mask)

    def best(self) -> dict[str, torch.Tensor]:
        return {"values": self.parameter.data}

    def state(self) -> dict[str, torch.Tensor]:
        count = torch.tensor(self.moments.count)
        kept = {} if self.mask is None else {"mask": self.mask}
        return {"values": self.parameter.data, "first": self.moments.first, "second": self.moments.second, "count": count} | kept

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        self.parameter.data.copy_(state["values"])
        if "count" in state:
            self.moments = Moments(state["first"], state["second"], int(state["count"]))
            self.mask = state.get("mask")


def spread(t: torch.Tensor) -> float:
    """Root mean square: the unit in which a tensor moves. Tensors that begin at 0 (biases) move as if theirs were 0.01."""
    return max(float(t.detach().float().square().mean().sqrt()), 0.01) if t.numel() else 1.0
