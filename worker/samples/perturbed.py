"""Texts that are none of the samples': theirs, with other tokens in the place of some. Distillation asks what two models say, whether or not a text makes
sense, and texts of one kind show a network a small part of its vocabulary: what it said of the rest is forgotten. Of sequences of random words alone a model
can be learnt (Krishna et al., 2020, "Thieves on Sesame Street! Model Extraction of BERT-based APIs"). They have no labels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from worker.samples.data import Batch, Data

if TYPE_CHECKING:
    from worker.runnable.runnable import Runnable

FEWEST = 3  # tokens to draw from, so that there is something to draw


@dataclass(frozen=True)
class Vocabulary:
    """Args:
    drawn: int64 [K], ids that may come in.
    kept: int64 [S], ids that stay where they are: those that begin, end, part and pad a text.
    """

    drawn: torch.Tensor
    kept: torch.Tensor
    keeps_labels = False  # nobody has said what other texts are
    says = "every other text has other tokens in the place of some"

    def __call__(self, batch: Batch, rows: list[int], generator: torch.Generator) -> Batch:
        return perturbed(batch, self, rows, generator)

    @classmethod
    def of(cls, runnable: Runnable, data: Data) -> Vocabulary | None:
        """Kept are the ids that the tokenizer calls special, that of padding, and one with which all samples begin, or all end. None where the model takes no
        tokens, where it is not known how many there are, and for language models: every token of their texts is something to learn from, so that other texts
        cost them more of their own than they bring (stories260k at 50 %: KL .37 without, .39 with)."""
        taken = runnable.inputs.get("input_ids")
        ids = list(data.tokens) or (list(data.arrays["input_ids"]) if "input_ids" in data.arrays and data.arrays["input_ids"].ndim == 2 else [])
        if runnable.task in ("causal-lm", "seq2seq") or taken is None or taken.dtype.is_floating_point or taken.below is None or not ids:
            return None
        kept = {*runnable.special, runnable.pad}
        for at in (0, -1):
            ends = {int(own[at]) for own in ids if len(own)}
            kept |= ends if len(ends) == 1 else set()
        drawn = torch.ones(taken.below, dtype=torch.bool)
        fixed = torch.tensor(sorted(k for k in kept if 0 <= k < taken.below), dtype=torch.long)
        drawn[fixed] = False
        return cls(drawn.nonzero()[:, 0], fixed) if int(drawn.sum()) >= FEWEST else None


def perturbed(batch: Batch, vocabulary: Vocabulary, rows: list[int], generator: torch.Generator) -> Batch:
    """Of each of `rows` a share of the tokens, itself drawn evenly between none and all, is replaced by others, each drawn evenly from the vocabulary.
    What is drawn depends on the generator and the batch's shape alone, not on the device.

    Returns:
        a new batch, without labels; the position of a sample that is none of the data's is -1.
    """
    ids, device = batch.inputs["input_ids"], batch.inputs["input_ids"].device
    share = torch.rand(len(batch), 1, generator=generator)
    hit = torch.rand(ids.shape, generator=generator) < share
    others = vocabulary.drawn[torch.randint(len(vocabulary.drawn), ids.shape, generator=generator)]
    own = torch.zeros(len(batch), 1, dtype=torch.bool)
    own[rows] = True
    hit = (hit & own).to(device) & ~torch.isin(ids, vocabulary.kept.to(device))
    if batch.mask is not None:
        hit &= batch.mask
    chosen = set(rows)
    positions = tuple(-1 if row in chosen else p for row, p in enumerate(batch.positions))
    inputs = batch.inputs | {"input_ids": torch.where(hit, others.to(device), ids)}
    return replace(batch, inputs=inputs, labels=None, positions=positions)
