"""Adam (Kingma and Ba, 2015), a tensor at a time, with its state in the caller's hands: it is saved, resumed, and its second moment ranks weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


@dataclass
class Moments:
    """Of the gradients of one tensor: running means of g and of g^2, float32, its shape; `count` of gradients seen."""

    first: torch.Tensor
    second: torch.Tensor
    count: int = 0

    @classmethod
    def like(cls, tensor: torch.Tensor) -> Moments:
        return cls(torch.zeros_like(tensor, dtype=torch.float32), torch.zeros_like(tensor, dtype=torch.float32))

    def mean_square(self) -> torch.Tensor:
        """g^2 as it was lately, without the bias of the first steps: the diagonal of the empirical Fisher information, of mini-batches."""
        return self.second / max(1 - BETA2**self.count, EPSILON)


def step(moments: Moments, gradient: torch.Tensor, rate: float) -> torch.Tensor:
    """Take the gradient into the moments; what is to be subtracted from the values, their shape."""
    moments.count += 1
    moments.first.mul_(BETA1).add_(gradient, alpha=1 - BETA1)
    moments.second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
    spread = (moments.second / (1 - BETA2**moments.count)).sqrt_().add_(EPSILON)
    return moments.first / spread * (rate / (1 - BETA1**moments.count))
