"""A tensor that no step works on (biases, norms), on a grid whose step is a power of two: its floats keep their dtype, and what an entropy coder makes of them
gets small. The grid is as coarse as the price of a bit says."""

from __future__ import annotations

import torch

from worker.kernels.adam import Moments, step
from worker.kernels.grid import coarsest
from worker.recovery.weights import spread


class Rounded:
    """Args:
    parameter: of the network; its memory is this one's own.
    fisher: float32, its shape: by how much the loss grows with the square of an error of each value.
    price: nats of the loss that one bit is worth.
    """

    plan = None

    def __init__(self, parameter: torch.nn.Parameter, fisher: torch.Tensor, price: float):
        self.parameter = parameter
        self.latent = parameter.data.clone()
        self.grid = coarsest(self.latent, fisher, price)
        self.scale = spread(parameter)
        self.moments = Moments.like(parameter)
        self.place()

    @torch.no_grad()
    def update(self, gradient: torch.Tensor, rate: float, penalty: tuple[str, float] = ("none", 0.0)) -> None:
        self.latent -= step(self.moments, gradient, rate * self.scale)
        self.place()

    @torch.no_grad()
    def place(self) -> None:
        values = self.latent if self.grid is None else (self.latent / self.grid).round_().mul_(self.grid)
        self.parameter.data.copy_(values)

    def best(self) -> dict[str, torch.Tensor]:
        return {"latent": self.latent}

    def state(self) -> dict[str, torch.Tensor]:
        moments = {"first": self.moments.first, "second": self.moments.second, "count": torch.tensor(self.moments.count)}
        return moments | {"latent": self.latent, "steps": torch.tensor([self.grid or 0.0, self.scale], dtype=torch.float64)}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        self.latent = state["latent"]
        if "count" in state:
            self.moments = Moments(state["first"], state["second"], int(state["count"]))
            grid, self.scale = state["steps"].tolist()
            self.grid = grid or None
        self.place()
