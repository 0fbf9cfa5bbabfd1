"""The rounding of all matrices of a block, learned together: so that the block's output comes near to what it shall be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call

from worker.plan import TensorPlan
from worker.reconstruction.course import hidden
from worker.reconstruction.offsets import Offsets

CHECKS = 4
"""How often the loss over all samples is taken on the way; the best state is kept, that of the start among them."""


@dataclass(frozen=True)
class Passage:
    """A batch on its way through a block.

    Args:
        args, kwargs: of the block.
        target: what the block shall put out.
        mask: bool [n, T], or None.
    """

    args: tuple
    kwargs: dict
    target: torch.Tensor
    mask: torch.Tensor | None

    def error(self, output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums of squares: of output - target, and of target. Tokens of padding do not count."""
        target = self.target
        if self.mask is not None and output.shape[:2] == self.mask.shape:
            output, target = output[self.mask], target[self.mask]
        return (output.float() - target.float()).square().sum(), target.float().square().sum()


@dataclass(frozen=True)
class Learned:
    """A weight, that of a tensor or of one of its experts. Args: name: within the block."""

    name: str
    plan: TensorPlan
    offsets: Offsets

    def value(self) -> torch.Tensor:
        """As the block takes it, float32."""
        values = self.offsets.values()
        return values if self.plan.experts is not None else self.plan.shaped(values)

    def matrix(self, gradient: torch.Tensor) -> torch.Tensor:
        """[O, I], of one shaped as `value`."""
        return gradient if self.plan.experts is not None else self.plan.matrix(gradient)


@dataclass(frozen=True)
class Gain:
    """Relative squared error of the block's output over all samples, before and after."""

    before: float
    after: float


def descend(
    block: nn.Module, weights: list[Learned], others: dict[str, torch.Tensor], passages: list[Passage], steps: int, seed: int, advance: Callable[[], None] = lambda: None
) -> Gain:
    """Leaves the best state in the offsets of `weights`.

    Args:
        others: new values of further weights of the block, by name within it.
        steps: of one batch each; the rate falls from 1 / steps to 0 along a line.
        seed: of the order of batches.
        advance: called after each step.
    """
    order = _order(len(passages), seed)
    best = before = _loss(block, weights, others, passages)
    kept = [w.offsets.state for w in weights]
    checks = {round(steps * k / CHECKS) for k in range(1, CHECKS + 1)}
    for step in range(steps):
        passage = passages[next(order)]
        leaves = [w.value().requires_grad_() for w in weights]
        with torch.enable_grad():
            error, energy = passage.error(_output(block, others | {w.name: leaf for w, leaf in zip(weights, leaves, strict=True)}, passage))
            gradients = torch.autograd.grad(error, leaves, allow_unused=True) if error.requires_grad else [None] * len(leaves)
        rate = (1 - step / steps) / steps
        for w, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                w.offsets.step(w.matrix(gradient), rate, rate)
        if step + 1 in checks and (loss := _loss(block, weights, others, passages)) < best:
            best, kept = loss, [w.offsets.state for w in weights]
        advance()
    for w, state in zip(weights, kept, strict=True):
        w.offsets.state = state
    return Gain(before, best)


def alone(offsets: Offsets, w: torch.Tensor, gram: torch.Tensor, steps: int, advance: Callable[[], None] = lambda: None) -> Gain:
    """`descend` of one layer, by |(Q - W) X^T|^2 over all samples at once.

    Args:
        w: [O, I] float32, what it shall be.
        gram: X^T X, [I, I].
    """
    before, best, kept = None, None, offsets.state
    energy = float(((w @ gram) * w).sum()) or 1.0
    for step in range(steps + 1):
        change = offsets.values() - w
        gradient = change @ gram
        loss = float((gradient * change).sum()) / energy
        if best is None or loss < best:
            before, best, kept = loss if before is None else before, loss, offsets.state
        if step < steps:
            rate = (1 - step / steps) / steps
            offsets.step(gradient, rate, rate)
            advance()
    offsets.state = kept
    return Gain(before, best)


def _output(block: nn.Module, values: dict[str, torch.Tensor], passage: Passage) -> torch.Tensor:
    return hidden(functional_call(block, values, passage.args, passage.kwargs))


@torch.no_grad()
def _loss(block: nn.Module, weights: list[Learned], others: dict[str, torch.Tensor], passages: list[Passage]) -> float:
    values = others | {w.name: w.value() for w in weights}
    error = energy = 0.0
    for passage in passages:
        e, whole = passage.error(_output(block, values, passage))
        error, energy = error + float(e), energy + float(whole)
    return error / energy if energy > 0 else error


def _order(count: int, seed: int) -> Iterator[int]:
    """Each batch once, then each once again in another order, and so on."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator).tolist()
