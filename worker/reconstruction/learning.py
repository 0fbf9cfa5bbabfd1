"""The rounding of a stage's matrices, learned from where they start: of a block by what it puts out, of a layer outside of blocks by the second moments of its
inputs, which tell the error of its output too."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from worker.encoded import Encoded
from worker.reconstruction.course import Stage
from worker.reconstruction.descent import Gain, Learned, Passage, alone, descend
from worker.reconstruction.offsets import Offsets
from worker.reconstruction.solving import Start


def learn(
    stage: Stage, starts: dict[str, Start], weights: dict[str, list[nn.Parameter]], others: Mapping[nn.Parameter, torch.Tensor], passages: list[Passage], seed: int,
    advance: Callable[[], None],
) -> dict[str, Encoded]:  # fmt: skip
    """The tensors of `starts`, as learned.

    Args:
        weights: what each tensor of the stage is in the network: a weight, or one for each of its experts.
        others: new values of weights whose rounding is not learned.
        passages: through its block; empty where it has none.
        advance: called after each step.
    """
    offsets = {name: start.offsets() for name, start in starts.items()}
    steps = max(start.step.steps for start in starts.values())
    if not passages:
        gains = {name: [_alone(start, i, o, steps) for i, o in enumerate(offsets[name]) if o is not None] for name, start in starts.items()}
        for _ in range(steps):
            advance()
        return {name: start.learned(offsets[name], _note("layer", max(gains[name], key=lambda gain: gain.after), steps)) for name, start in starts.items()}
    inside = {parameter: name for name, parameter in stage.block.named_parameters()}
    learned = [Learned(inside[weight], start.plan, o) for name, start in starts.items() for weight, o in zip(weights[name], offsets[name], strict=True) if o is not None]
    fixed = {inside[weight]: value for weight, value in others.items()}
    for name, start in starts.items():  # experts that too few tokens reach
        rounded = start.plan.each(start.plan.matrix(start.encoded.dense))
        fixed |= {inside[weight]: value for weight, o, value in zip(weights[name], offsets[name], rounded, strict=True) if o is None}
    fixed = {name: value.to(next(iter(weights.values()))[0]) for name, value in fixed.items()}
    note = _note("block", descend(stage.block, learned, fixed, passages, steps, seed, advance), steps)
    return {name: start.learned(offsets[name], note) for name, start in starts.items()}


def _alone(start: Start, i: int, offsets: Offsets, steps: int) -> Gain:
    return alone(offsets, start.plan.each(start.w)[i].float(), start.grams[i], steps)


def _note(what: str, gain: Gain, steps: int) -> str:
    return f"output error of its {what} {gain.before**0.5:.4f} before, {gain.after**0.5:.4f} after {steps} steps of learning"
