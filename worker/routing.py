"""How many tokens reach each expert of a mixture, told by what the experts of a layer are called with; tokens of padding do not count."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from worker.runnable.experts import Experts
from worker.runnable.stacks import stacked_weights

FEWEST = 16
"""Tokens that have to reach an expert for what is learned of it from them to count."""


class Routing:
    """Active as a context.

    Args:
        mask: bool [n, T] of the batch at hand, or None.

    Attributes:
        counts: int64 by weight: [E] of a parameter [E, ...], [1] of one expert's own.
    """

    def __init__(self, module: nn.Module, mask: Callable[[], torch.Tensor | None]):
        self.mask, self.counts = mask, {}
        self.layers = {m: weights for m in module.modules() if (weights := _weights(m))}

    def __enter__(self) -> Routing:
        self.handles = [m.register_forward_pre_hook(self._hook, with_kwargs=True) for m in self.layers]
        return self

    def __exit__(self, *_) -> None:
        for handle in self.handles:
            handle.remove()

    @torch.no_grad()
    def _hook(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        weights, given = self.layers[module], [v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)]
        count = len(weights) if isinstance(module, Experts) else len(weights[0][0])
        found = _counted(given, count, self.mask())
        if found is None:
            return
        for number, held in enumerate(weights):
            for weight in held:
                new = found[number : number + 1] if isinstance(module, Experts) else found
                self.counts[weight] = self.counts[weight] + new if weight in self.counts else new


def _weights(module: nn.Module) -> list[list[nn.Parameter]]:
    """Those of each expert or, in a list of one, those that hold all experts; empty where the module has no experts."""
    if isinstance(module, Experts):
        return [[layer.weight for layer in expert.children() if isinstance(layer, nn.Linear)] for expert in module.experts]
    return [held] if (held := stacked_weights(module)) else []


def _counted(given: Sequence[torch.Tensor], count: int, mask: torch.Tensor | None) -> torch.Tensor | None:
    """Args: given: hidden states [T, H] and, among others, the experts of each token [T, k]; or hidden states [E * T, H] alone. None where it is neither."""
    chosen = next((t.flatten(0, -2) for t in given[1:] if not t.is_floating_point() and t.ndim > 1), None)
    if chosen is None:
        if len(given) != 1 or given[0].ndim != 2 or len(given[0]) % count:
            return None
        rows = given[0].unflatten(0, (count, -1)).any(-1)
        return (rows & mask.reshape(-1) if mask is not None and rows.shape[1] == mask.numel() else rows).sum(1)
    chosen = chosen[mask.reshape(-1)] if mask is not None and len(chosen) == mask.numel() else chosen
    return torch.bincount(chosen[(chosen >= 0) & (chosen < count)], minlength=count)


def few(counts: torch.Tensor | None, weight: torch.Tensor) -> torch.Tensor:
    """bool, spreading to the weight: where too few tokens have been."""
    if counts is None:
        return torch.zeros((), dtype=torch.bool, device=weight.device)
    return (counts < FEWEST).to(weight.device).reshape(-1, *[1] * (weight.ndim - 1))
