"""Hooks on the layers of a network that give the gradient of each weight for each sample of a batch, while the batch goes back through the network once.

A weight that several layers share, or a layer that is run several times, has one gradient for a sample: the sum over its uses. The weights themselves
need no gradient, so that autograd computes none; a zero that needs one is added to the first output that has none, which opens the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from worker.layer_gradients import by_sample, each, is_matrix, supported, touched

Told = Callable[[nn.Parameter, "Gradients"], None]


@dataclass
class Use:
    """One run of a layer: x [..], and g of its output once it has come back."""

    module: nn.Module
    x: torch.Tensor
    g: torch.Tensor | None = None


@dataclass(frozen=True)
class Gradients:
    """Of one weight, for `samples` samples. `uses` have the samples first, as `by_sample` gives them."""

    samples: int
    uses: tuple[Use, ...]

    def of(self, i: int) -> torch.Tensor:
        """The gradient for sample i, the weight's shape."""
        dense, *others = sorted(self.uses, key=lambda u: isinstance(u.module, nn.Embedding))
        whole = each(dense.module, dense.x[i], dense.g[i])
        for use in others:
            if isinstance(use.module, nn.Embedding):  # a head tied to its embedding: few rows of many
                whole.index_add_(0, *touched(use.module, use.x[i], use.g[i]))
            else:
                whole += each(use.module, use.x[i], use.g[i])
        return whole

    @torch.no_grad()
    def add(self, absolute: torch.Tensor, square: torch.Tensor) -> None:
        """Add sum |g| and sum g^2 over the samples, in place."""
        module, x, g = self.uses[0].module, self.uses[0].x, self.uses[0].g
        if len(self.uses) == 1 and isinstance(module, nn.Linear) and x.shape[1] == 1:
            x, g = x[:, 0], g[:, 0]  # one row each: the gradient is an outer product, and so are |g| and g^2
            absolute += g.abs().T @ x.abs()
            square += g.square().T @ x.square()
            return
        for i in range(self.samples):
            if len(self.uses) == 1 and isinstance(module, nn.Embedding):
                rows, values = touched(module, x[i], g[i])
                square[rows] += values.square()
                absolute[rows] += values.abs()
            else:
                whole = self.of(i)
                square.addcmul_(whole, whole)
                absolute += whole.abs_()


class Inseparable(Exception):
    """A layer sees the samples of a batch in a form that does not tell them apart: they must be run one by one."""


class Watch:
    """Active as a context.

    Args:
        wanted: the weights to watch.
        told: called with each weight and its gradients, once a batch has gone back as far as it.
        saw: called with each matrix layer's weight and its input, going forward.
    """

    def __init__(self, module: nn.Module, wanted: set[nn.Parameter], told: Told, saw: Callable[[nn.Parameter, torch.Tensor], None] = lambda p, x: None):
        self.layers = [m for m in module.modules() if supported(m) and m.weight in wanted]
        self.told, self.saw = told, saw
        self.samples, self.uses, self.handles = 0, {}, []

    def __enter__(self) -> Watch:
        self.handles = [m.register_forward_hook(self._forward) for m in self.layers]
        return self

    def __exit__(self, *_) -> None:
        for handle in self.handles:
            handle.remove()
        self.uses = {}

    def begin(self, samples: int) -> None:
        """Before each batch."""
        self.samples, self.uses = samples, {}

    def backward(self, loss: torch.Tensor) -> None:
        """Send a scalar loss back.

        Raises:
            Inseparable: see there.
        """
        if loss.requires_grad:
            loss.backward()
        for parameter, uses in list(self.uses.items()):
            self._tell(parameter, uses)
        self.uses = {}

    def _forward(self, module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        x = args[0].detach()
        if is_matrix(module):
            self.saw(module.weight, x)
        if not torch.is_grad_enabled():
            return output
        if isinstance(module, nn.Embedding) and x.ndim == 2 and x.shape[0] == 1 < x.shape[1]:  # positions, looked up once for all samples: each gets its own
            x, output = x.expand(self.samples, -1), output.expand(self.samples, -1, -1)
        if not output.requires_grad:
            output = output + torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)
        use = Use(module, x)
        self.uses.setdefault(module.weight, []).append(use)
        output.register_hook(lambda g: self._back(use, g.detach()))
        return output

    def _back(self, use: Use, g: torch.Tensor) -> None:
        use.g = g if use.g is None else use.g + g
        if len(uses := self.uses.get(use.module.weight, ())) == 1:  # a weight that is used once is done with: nothing of it is kept
            del self.uses[use.module.weight]
            self._tell(use.module.weight, uses)

    def _tell(self, parameter: nn.Parameter, uses: list[Use]) -> None:
        came = [u for u in uses if u.g is not None]
        parts = [by_sample(u.module, u.x, u.g, self.samples) for u in came]
        if None in parts:
            raise Inseparable
        if came:
            self.told(parameter, Gradients(self.samples, tuple(Use(u.module, *xg) for u, xg in zip(came, parts, strict=True))))
