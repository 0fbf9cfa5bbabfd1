"""Samples that a model takes, padded and stacked batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from worker.samples.split import split


@dataclass(frozen=True)
class Batch:
    """n samples.

    Args:
        inputs: the model's arguments by name, each [n, ...].
        mask: bool [n, T], True where a token is none of padding; None where the inputs are no tokens.
        labels: int64 or float32, [n] or [n, K]; None when there are none.
        positions: of the samples, in the order of the data.
    """

    inputs: dict[str, torch.Tensor]
    mask: torch.Tensor | None
    labels: torch.Tensor | None
    positions: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.positions)

    def rows(self, start: int, stop: int) -> Batch:
        """Some of the samples, padded as they are here."""
        mask, labels = (None if t is None else t[start:stop] for t in (self.mask, self.labels))
        return Batch({k: v[start:stop] for k, v in self.inputs.items()}, mask, labels, self.positions[start:stop])

    def counted(self, logits: torch.Tensor) -> torch.Tensor:
        """bool [n, T]: which positions of logits [n, T, V] count. They are those of the text that a model continues: a decoder's own, where it is given one
        (all of it, unless the data say what is padding), else the samples'; all of them where the data say nothing of this many."""
        own = "decoder_input_ids" in self.inputs or "decoder_attention_mask" in self.inputs
        mask = self.inputs.get("decoder_attention_mask") if own else self.mask
        fits = mask is not None and mask.shape == logits.shape[:2]
        return mask.bool() if fits else torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)

    def to(self, device: torch.device) -> Batch:
        mask, labels = (None if t is None else t.to(device) for t in (self.mask, self.labels))
        return replace(self, inputs={k: v.to(device) for k, v in self.inputs.items()}, mask=mask, labels=labels)


@dataclass(frozen=True)
class Data:
    """N samples. Made by `worker.samples.fit`.

    Args:
        tokens: ids of each sample, int64 [T]; empty where `arrays` hold the inputs.
        arrays: by input name, [N, ...].
        labels: int64 or float32, [N] or [N, K], or None.
        pad: the id that fills up shorter samples of a batch.
        notes: what was done to them, for the report.
    """

    tokens: list[np.ndarray] = field(default_factory=list)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    labels: np.ndarray | None = None
    pad: int = 0
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens) or len(next(iter(self.arrays.values())))

    def length(self, position: int) -> int:
        """Tokens of a sample; 1 where it has none."""
        if self.tokens:
            return len(self.tokens[position])
        ids = self.arrays.get("input_ids")
        return ids.shape[1] if ids is not None and ids.ndim == 2 else 1

    def batches(self, name: str, size: int) -> Iterator[Batch]:
        """The samples of a split, in order, `size` at a time (the last may be fewer)."""
        positions = split(len(self), name)
        for start in range(0, len(positions), size):
            yield self.batch(positions[start : start + size])

    def batch(self, positions: Sequence[int]) -> Batch:
        positions = list(positions)
        labels = None if self.labels is None else torch.from_numpy(self.labels[positions])
        if self.tokens:
            return self._padded(positions, labels)
        inputs = {name: torch.from_numpy(np.ascontiguousarray(array[positions])) for name, array in self.arrays.items()}
        mask = inputs.get("attention_mask")
        if mask is None and "input_ids" in inputs:
            mask = torch.ones_like(inputs["input_ids"])
        return Batch(inputs, None if mask is None or mask.ndim != 2 else mask.bool(), labels, tuple(positions))

    def _padded(self, positions: list[int], labels: torch.Tensor | None) -> Batch:
        longest = max(len(self.tokens[i]) for i in positions)
        ids = torch.full((len(positions), longest), self.pad)
        mask = torch.zeros(len(positions), longest, dtype=torch.bool)
        for row, i in enumerate(positions):
            ids[row, : len(self.tokens[i])] = torch.from_numpy(self.tokens[i])
            mask[row, : len(self.tokens[i])] = True
        return Batch({"input_ids": ids, "attention_mask": mask.long()}, mask, labels, tuple(positions))
