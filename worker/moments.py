"""X^T X of what goes into the matrix layers of a network, [I, I] float32: the second moments that GPTQ, SparseGPT, Wanda and least squares go by.

    linear        X [tokens, I]                              W [O, I]
    Conv1D        the same                                   W [I, O], GPT-2's
    convolution   X [patches, I * kh * kw], of one group     W [O, I, kh, kw]

Tokens of padding do not count. Layers that are given one and the same tensor (query, key and value) share one sum, convolutions where they cut it into the
same patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from worker.layer_gradients import is_matrix

_UNFOLDED = 1 << 24  # numbers of unfolded patches at a time


def has_moments(module: nn.Module) -> bool:
    if type(module) in (nn.Conv1d, nn.Conv2d):
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return is_matrix(module)


@dataclass(frozen=True)
class Sum:
    """gram: X^T X, float32 [I, I]; tokens: rows of X."""

    gram: torch.Tensor
    tokens: int


class Moments:
    """Active as a context: sums over whatever runs meanwhile.

    Args:
        layers: of which `has_moments` holds.
        mask: bool [n, T] of the batch at hand, or None.
    """

    def __init__(self, layers: Iterable[nn.Module], mask: Callable[[], torch.Tensor | None]):
        self.layers, self.mask = list(layers), mask
        self._sums: dict[nn.Parameter, Sum] = {}
        self._last: tuple[torch.Tensor | None, int] = None, 0  # the input seen last, as it was before anybody wrote to it,
        self._added: dict[tuple, tuple[Sum | None, Sum]] = {}  # and what became of sums that it was added to, by patches

    def __enter__(self) -> Moments:
        self._handles = [m.register_forward_pre_hook(self._hook) for m in self.layers]
        return self

    def __exit__(self, *_) -> None:
        for handle in self._handles:
            handle.remove()
        self._last, self._added = (None, 0), {}

    def of(self, weight: nn.Parameter) -> Sum | None:
        """None where the layer did not run. Weights that were given the same inputs throughout have one and the same."""
        return self._sums.get(weight)

    @torch.no_grad()
    def _hook(self, module: nn.Module, args: tuple) -> None:
        if not args:
            return
        x, before = args[0], self._sums.get(module.weight)
        if self._last[0] is not x or self._last[1] != x._version:
            self._last, self._added = (x, x._version), {}
        key = id(before), _patches(module)
        if key not in self._added:
            self._added[key] = before, _plus(before, rows(module, x, self.mask()))
        self._sums[module.weight] = self._added[key][1]


def _patches(module: nn.Module) -> tuple:
    """Which patches of its input a convolution goes by; empty for a matrix."""
    return () if is_matrix(module) else (module.kernel_size, module.dilation, module.stride, module.padding)


def _plus(before: Sum | None, pieces: Iterable[torch.Tensor]) -> Sum:
    gram, tokens = None if before is None else before.gram, 0 if before is None else before.tokens
    for part in pieces:
        part = part.float()
        product = part.T @ part
        gram, tokens = product if gram is None else product.add_(gram), tokens + len(part)
    return Sum(gram, tokens)


def rows(module: nn.Module, x: torch.Tensor, mask: torch.Tensor | None) -> Iterable[torch.Tensor]:
    """X in pieces [tokens, I]."""
    if is_matrix(module):
        flat = x.reshape(-1, x.shape[-1])
        places, count = getattr(module, "places", (None, 0))
        if mask is not None and (x.shape[:-1] == mask.shape or x.shape[:-1] == (mask.numel(),)):
            flat = flat[mask.reshape(-1)]
        elif mask is not None and count == mask.numel() and len(places) == len(flat):
            flat = flat[mask.reshape(-1)[places]]
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
