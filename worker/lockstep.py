"""Two models side by side on the same batches: what is added up of their outputs goes by the task (`app.gates.FIGURES`, `worker.quality`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import torch

from app import gates
from worker.quality import Accuracy, Cosine, Divergence, Error, Perplexity
from worker.samples import Batch


class Model(Protocol):
    """As `worker.runnable` opens it."""

    task: str

    def forward(self, batch: Batch) -> torch.Tensor: ...


@torch.no_grad()
def compare(before: Model, after: Model, batches: Iterable[Batch], labelled: bool, advance: Callable[[int], None] = lambda n: None) -> dict:
    """Both models in lockstep, so that memory holds the outputs of one batch.

    Args:
        batches: on the models' device.
        labelled: whether they bring the number of each sample's class.
        advance: told of samples, as they are done.

    Returns:
        the figures of `app.gates.figures`, and `positions` of those that are per position.
    """
    tell = {"causal-lm": Tokens, "seq2seq": Tokens, "classifier": Classes}.get(before.task, Vectors)(before.task, labelled)
    for batch in batches:
        tell.add(before.forward(batch), after.forward(batch), batch)
        advance(len(batch))
    found = tell.figures()
    return {name: found[name] for name in (*gates.figures(before.task, labelled), "positions") if name in found}


class Tokens:
    """Logits [N, T, V] at every token that is none of padding and, of a causal model, the token that follows where one does."""

    def __init__(self, task: str, labelled: bool):
        self.causal = task == "causal-lm"
        self.divergence, self.perplexity = Divergence(), Perplexity()

    def add(self, before: torch.Tensor, after: torch.Tensor, batch: Batch) -> None:
        mask, ids = batch.counted(before), batch.inputs.get("input_ids")
        for i, keep in enumerate(mask):  # a sample at a time: selecting copies
            x, y = before[i], after[i]
            self.divergence.add(x[keep], y[keep])
            if self.causal and ids is not None:
                followed = keep[:-1] & keep[1:]
                self.perplexity.add(x[:-1][followed], y[:-1][followed], ids[i, 1:][followed])

    def figures(self) -> dict:
        return self.divergence.figures() | self.perplexity.figures() | {"positions": self.divergence.positions}


class Vectors:
    """Outputs [N, ...]; with labels [N] also as scores [N, C] of classes."""

    def __init__(self, task: str, labelled: bool):
        self.cosine, self.error, self.accuracy = Cosine(), Error(), Accuracy() if labelled else None

    def add(self, before: torch.Tensor, after: torch.Tensor, batch: Batch) -> None:
        self.cosine.add(before, after)
        self.error.add(before, after)
        if self.accuracy:
            self.accuracy.add(before, after, batch.labels)

    def figures(self) -> dict:
        return self.cosine.figures() | self.error.figures() | (self.accuracy.figures() if self.accuracy else {})


class Classes(Vectors):
    """Logits [N, C]."""

    def __init__(self, task: str, labelled: bool):
        super().__init__(task, labelled)
        self.divergence = Divergence()

    def add(self, before: torch.Tensor, after: torch.Tensor, batch: Batch) -> None:
        super().add(before, after, batch)
        self.divergence.add(before.flatten(0, -2), after.flatten(0, -2))

    def figures(self) -> dict:
        return super().figures() | self.divergence.figures()
