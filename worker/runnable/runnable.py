"""A model that runs: what it takes, what it gives, and its weights by the names of the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from app.errors import InputRefused
from worker.samples.data import Batch

TASKS = ("encoder", "causal-lm", "seq2seq", "classifier", "regressor")
PROGRAM = "program"
"""The task of a program until it meets its data: labels make it a classifier, else it is a regressor."""


@dataclass(frozen=True)
class Input:
    """One argument of a model, by sample.

    Args:
        dtype: what it is computed in; integers are taken for an integer dtype and floats for a floating one.
        shape: without the sample's dimension; None in place of a size that is free, or of the whole where it is not known.
        below: bound on integers; None where there is none.
        required: whether the model runs without it.
    """

    dtype: torch.dtype
    shape: tuple[int | None, ...] | None = None
    below: int | None = None
    required: bool = True


@dataclass(frozen=True)
class Features:
    """What a model makes of a batch: its output, and what lies on the way there.

    Args:
        output: as of `Runnable.forward`.
        hidden: of each layer, the last included: [N, T, D], T as in the batch's mask; [N, ...] where there is no mask. Empty where layers do not tell.
    """

    output: torch.Tensor
    hidden: tuple[torch.Tensor, ...] = ()


@dataclass
class Runnable:
    """A model in evaluation mode, float32, on its device; no parameter requires a gradient until asked to.

    Args:
        module: the network.
        parameters: by the names of the checkpoint's tensors; tied ones under each of their names. Tensors that the network does not use are not here.
        task: one of TASKS, or another word where it is not known.
        forward: what is compared: encoder [N, D], unit-length mean over unpadded tokens; causal-lm and seq2seq logits [N, T, V]; classifier
            logits [N, C]; regressor [N, K]; else [N, ...].
        inputs: by name; text models take `input_ids`.
        tokenizer: text -> token ids of each; None where there is none.
        special: ids of tokens that are no text, as its tokenizer has them.
        longest: tokens that it takes; None where it takes none.
        pad: id of padding.
        classes: of a classifier, or outputs of a regressor.
        watch: the output with the hidden states; None where only `forward` is known.
    """

    module: nn.Module
    parameters: dict[str, nn.Parameter]
    task: str
    forward: Callable[[Batch], torch.Tensor]
    inputs: dict[str, Input] = field(default_factory=dict)
    tokenizer: Callable[[list[str]], list[list[int]]] | None = None
    longest: int | None = None
    pad: int = 0
    classes: int | None = None
    watch: Callable[[Batch], Features] | None = None
    special: frozenset[int] = frozenset()

    def features(self, batch: Batch) -> Features:
        """What training follows, of one pass."""
        return self.watch(batch) if self.watch else Features(self.forward(batch))

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.module.parameters()), torch.device("cpu"))


@torch.no_grad()
def replace(runnable: Runnable, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put new values, of any floating dtype, in the place of parameters, by the checkpoint's names; names that the network does not use are passed over."""
    for name, tensor in tensors.items():
        if (parameter := runnable.parameters.get(name)) is not None:
            parameter.copy_(tensor)


def not_runnable(why: str, instead: str) -> InputRefused:
    """Args: instead: what would work, a noun."""
    return InputRefused("not-runnable", f"the model cannot be run: {why}; needed is {instead}, or, where a step goes by gradients, upload `gradients` and leave `calibration` out")
