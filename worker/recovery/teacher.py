"""What the original model says to the samples, hidden states included: computed once where that is small, else batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

from app.memory import FOLLOWED
from worker.recovery.portions import portions
from worker.runnable.runnable import Features, Runnable
from worker.samples.data import Batch, Data


class Teacher:
    """Args:
    runnable: the original model.
    batch: samples that it is asked about at once. What is kept is computed in the order of the positions, so that a training that is resumed hears the
        very same.
    """

    def __init__(self, runnable: Runnable, data: Data, batch: int):
        self.runnable, self.data, self.batch = runnable, data, batch
        self.kept: dict[int, tuple[torch.Tensor, ...]] = {}

    @torch.no_grad()
    def keep(self, positions: Sequence[int], advance: Callable[[int], None] = lambda samples: None) -> bool:
        """Compute what is said of these samples, without what is said of padding, if it takes at most `app.memory.FOLLOWED` bytes; whether it was kept.

        Args:
            advance: told how many samples were done.
        """
        for start in range(0, len(positions), self.batch):
            whole = self.data.batch(positions[start : start + self.batch]).to(self.runnable.device)
            for _, batch in portions(self.runnable, whole):
                said = _tensors(self.runnable.features(batch))
                if not self.kept and sum(self._bytes(t, batch, positions) for t in said) > FOLLOWED:
                    return False
                for row, p in enumerate(batch.positions):
                    self.kept[p] = tuple(t[row, : self.data.length(p) if _by_token(t, batch) else None].clone() for t in said)
                advance(len(batch))
        return True

    @torch.no_grad()
    def says(self, batch: Batch, hidden: bool = True) -> Features:
        """Of a batch that is on the device; padding, of what is kept, says 0. Without `hidden`, its output alone."""
        if not all(p in self.kept for p in batch.positions):
            return self.runnable.features(batch) if hidden else Features(self.runnable.forward(batch))
        each = zip(*(self.kept[p][: None if hidden else 1] for p in batch.positions), strict=True)
        output, *states = (_batched(rows, self._tokens(rows, batch)) for rows in each)
        return Features(output, tuple(states))

    def _tokens(self, rows: Sequence[torch.Tensor], batch: Batch) -> int:
        """To how many rows what is kept is to be padded: the batch's tokens, where it has a row for each token; else none."""
        told = batch.mask is not None and all(row.ndim > 1 and len(row) == self.data.length(p) for row, p in zip(rows, batch.positions, strict=True))
        return batch.mask.shape[1] if told else 0

    def _bytes(self, said: torch.Tensor, batch: Batch, positions: Sequence[int]) -> int:
        """Of what is kept of one tensor, for all positions."""
        each = said.nbytes // len(batch)
        return each // said.shape[1] * sum(map(self.data.length, positions)) if _by_token(said, batch) else each * len(positions)


def _tensors(said: Features) -> tuple[torch.Tensor, ...]:
    return said.output, *said.hidden


def _by_token(said: torch.Tensor, batch: Batch) -> bool:
    return batch.mask is not None and said.ndim > 2 and said.shape[:2] == batch.mask.shape


def _batched(rows: Sequence[torch.Tensor], tokens: int) -> torch.Tensor:
    """[N, ...]; rows with fewer tokens than others, or than `tokens`, end in zeros."""
    longest = max(tokens, *(row.shape[0] if row.ndim else 0 for row in rows))
    return torch.stack([row if not row.ndim or row.shape[0] == longest else F.pad(row, (0, 0) * (row.ndim - 1) + (0, longest - row.shape[0])) for row in rows])
