"""Adam on all weights of a network, with its state in hand. (`torch.optim` wants a folder for its compiler's cache, which a job's process has not.)"""

from __future__ import annotations

import torch

from worker.kernels.adam import Moments, step


class Descent:
    """Args: network: on its device; `moments` by the names of its parameters."""

    def __init__(self, network: torch.nn.Module):
        self.parameters = dict(network.named_parameters())
        self.moments = {name: Moments.like(p) for name, p in self.parameters.items()}

    @torch.no_grad()
    def step(self, rate: float, longest: float | None = None) -> None:
        """Against the gradients, which are gone afterwards.

        Args:
            longest: bound of the length of all gradients together.
        """
        gradients = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        if longest is not None:
            length = torch.stack([g.norm() for g in gradients.values()]).norm()
            scale = (longest / (length + 1e-6)).clamp(max=1.0)
            gradients = {name: g * scale for name, g in gradients.items()}
        for name, gradient in gradients.items():
            self.parameters[name].sub_(step(self.moments[name], gradient, rate))
            self.parameters[name].grad = None

    def tensors(self) -> dict[str, torch.Tensor]:
        """Its state, as tensors by name."""
        out = {}
        for name, own in self.moments.items():
            out |= {f"{name}/first": own.first, f"{name}/second": own.second, f"{name}/count": torch.tensor(own.count)}
        return out

    def take(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take up a state.

        Raises:
            KeyError, RuntimeError: it is of another network.
        """
        for name, own in self.moments.items():
            own.first.copy_(tensors[f"{name}/first"])
            own.second.copy_(tensors[f"{name}/second"])
            own.count = int(tensors[f"{name}/count"])
