"""Statistics of gradients at hand."""

from __future__ import annotations

import torch


class Gradients:
    """As much of `worker.statistics.Statistics` as the methods ask for.

    Args:
        samples: name -> gradients [S, ...] of S samples.
    """

    def __init__(self, samples: dict[str, torch.Tensor]):
        self.samples = samples

    def absolute(self, name: str) -> torch.Tensor:
        return self.samples[name].abs().sum(0)

    def square(self, name: str) -> torch.Tensor:
        return self.samples[name].square().sum(0)
