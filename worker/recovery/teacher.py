"""What the original model says to the samples: computed once where that is small, else batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from worker.samples.data import Batch, Data

KEPT = 256 << 20
"""Bytes of outputs that are kept in memory."""


class Teacher:
    """Args:
    forward: of the original model.
    batch: samples that it is asked about at once. Kept outputs are computed in the order of the positions, so that a training that is resumed hears the
        very same.
    """

    def __init__(self, forward: Callable[[Batch], torch.Tensor], data: Data, device: torch.device, batch: int):
        self.forward, self.data, self.device, self.batch = forward, data, device, batch
        self.kept: torch.Tensor | None = None
        self.rows: dict[int, int] = {}

    @torch.no_grad()
    def keep(self, positions: Sequence[int], advance: Callable[[int], None] = lambda samples: None) -> bool:
        """Compute the outputs for these samples, if they take at most `KEPT` bytes and are of one shape; whether they were kept.

        Args:
            advance: told how many samples were done.
        """
        for start in range(0, len(positions), self.batch):
            batch = self.data.batch(positions[start : start + self.batch]).to(self.device)
            said = self.forward(batch)
            if self.kept is None:
                if batch.mask is not None and said.ndim > 2 or said[:1].nbytes * len(positions) > KEPT:
                    return False
                self.kept = said.new_empty(len(positions), *said.shape[1:])
            self.kept[start : start + len(batch)] = said
            self.rows |= {p: start + i for i, p in enumerate(batch.positions)}
            advance(len(batch))
        return True

    @torch.no_grad()
    def says(self, batch: Batch) -> torch.Tensor:
        """Its output for a batch that is on the device."""
        if self.kept is not None and all(p in self.rows for p in batch.positions):
            return self.kept[[self.rows[p] for p in batch.positions]]
        return self.forward(batch)
