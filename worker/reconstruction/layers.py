"""X^T X of what goes into the matrix layers of a network, [I, I] float32: the second moments that GPTQ, SparseGPT and Wanda go by.

    linear        X [tokens, I]                              W [O, I]
    Conv1D        the same                                   W [I, O], GPT-2's
    convolution   X [patches, I * kh * kw], of one group     W [O, I, kh, kw]

Tokens of padding do not count. Layers that are given one and the same tensor (query, key and value) share one sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from worker.layer_gradients import is_matrix

_UNFOLDED = 1 << 24  # numbers of unfolded patches at a time


def has_moments(module: nn.Module) -> bool:
    if type(module) in (nn.Conv1d, nn.Conv2d):
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return is_matrix(module)


class Moments:
    """Active as a context: sums over whatever runs meanwhile.

    Args:
        layers: of which `has_moments` holds.
        mask: bool [n, T] of the batch at hand, or None.

    Attributes:
        tokens: rows of X that each weight has seen.
    """

    def __init__(self, layers: Iterable[nn.Module], mask: Callable[[], torch.Tensor | None]):
        self.layers, self.mask = list(layers), mask
        self.sums: dict[nn.Parameter, torch.Tensor] = {}
        self.tokens: dict[nn.Parameter, int] = {}
        self._leader: dict[nn.Parameter, nn.Parameter] = {}
        self._last: tuple[torch.Tensor, nn.Parameter] | None = None  # held, so that no other tensor takes its place in memory

    def __enter__(self) -> Moments:
        self._handles = [m.register_forward_pre_hook(self._hook) for m in self.layers]
        return self

    def __exit__(self, *_) -> None:
        for handle in self._handles:
            handle.remove()
        self._last = None

    def of(self, weight: nn.Parameter) -> torch.Tensor | None:
        """[I, I]; None where the layer did not run."""
        return self.sums.get(self._leader.get(weight))

    @torch.no_grad()
    def _hook(self, module: nn.Module, args: tuple) -> None:
        if not args:
            return
        x, weight = args[0], module.weight
        if self._last is not None and self._last[0] is x:
            leader = self._last[1]
            if self._leader.setdefault(weight, leader) is leader:
                self.tokens[weight] = self.tokens[leader]
                return
        elif self._leader.setdefault(weight, weight) is not weight:  # it shared a sum so far, and now is given an input of its own
            self.sums[weight], self._leader[weight] = self.sums[self._leader[weight]].clone(), weight
        own = self._leader[weight]
        self._last = (x, own)
        for part in rows(module, x, self.mask()):
            part = part.float()
            product = part.T @ part
            self.sums[own] = self.sums[own].add_(product) if own in self.sums else product
            self.tokens[weight] = self.tokens.get(weight, 0) + len(part)


def rows(module: nn.Module, x: torch.Tensor, mask: torch.Tensor | None) -> Iterable[torch.Tensor]:
    """X in pieces [tokens, I]."""
    if is_matrix(module):
        flat = x.reshape(-1, x.shape[-1])
        if mask is not None and (x.shape[:-1] == mask.shape or x.shape[:-1] == (mask.numel(),)):
            flat = flat[mask.reshape(-1)]
        yield flat
        return
    x = x if x.ndim == module.weight.ndim else x[None]
    flat = isinstance(module, nn.Conv1d)  # a picture one pixel high
    sizes = [((1,) if flat else ()) + tuple(v) for v in (module.kernel_size, module.dilation, module.stride)]
    padding = ((0,) if flat else ()) + tuple(module.padding)
    x = x.unsqueeze(-2) if flat else x
    each = max(1, _UNFOLDED // max(1, x[0].numel() * module.weight[0, 0].numel()))
    for part in x.split(each):
        yield nn.functional.unfold(part, sizes[0], sizes[1], padding, sizes[2]).transpose(1, 2).flatten(0, 1)
