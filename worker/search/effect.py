"""What a model says with other weights in the place of some, beside what it said with its own: on a few samples of `fit` for each option of each matrix,
and on the held-out `stop` for a whole result.

The original's outputs are kept, and the weights put back after each look. Losses add up (nearly) over matrices, so they are of second order in what
has changed: 1 - cosine for encoders, KL in nats where there are classes, else the squared relative error of the outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from app import gates
from worker.calibration import chosen
from worker.checkpoint import Checkpoint
from worker.lockstep import compare
from worker.measuring import batch_size
from worker.runnable import Runnable, open_runnable, replace
from worker.samples import Batch, fit, read, split

_TOKENS, _SAMPLES, _LEAST = 2048, 64, 8  # of `fit` that options are measured on; most of both, and how few samples there may be
_HELD = 256  # samples of `stop` at most
_OUTPUTS = 1 << 26  # values of the original's outputs that are kept
BROKEN = 1e9
"""The loss of outputs that are not finite."""


class Effect:
    """Args:
    beside: paths of `calibration` and, where there are labels, `labels`.
    budget: its bounds on figures are held against the model's task.

    Raises: InputRefused: what the model or the samples are refused for. InvalidJobSpec: a figure that models of this task do not have.
    """

    def __init__(self, inp: Path, checkpoint: Checkpoint, beside: Mapping[str, str], budget: Mapping[str, float], device: torch.device):
        self.checkpoint, self.device = checkpoint, device
        self.model: Runnable = open_runnable(inp, checkpoint, device)
        self.data = fit(read(Path(beside["calibration"]), Path(beside["labels"]) if beside.get("labels") else None), self.model)
        labels = self.data.labels
        gates.check(dict(budget), self.model.task, labels is not None and labels.ndim == 1 and labels.dtype.kind == "i", "/budget")
        self.task = self.model.task
        self.figure = next(f for f in ("kl", "cosine", "relative_output_error") if f in gates.figures(self.task, False))
        self.size = min(8, batch_size(self.data, self.model, checkpoint))
        self.seen = _Answers(self.model, self.some(_TOKENS, _SAMPLES), self.task)
        held = split(len(self.data), "stop")
        self.held = _Answers(self.model, self._batches(held[:_HELD]), self.task)

    def some(self, tokens: int, samples: int) -> list[Batch]:
        """Samples of `fit`, evenly spaced. Args: tokens, samples: of all batches together, at most; _LEAST samples in any case."""
        positions = chosen(self.data)
        total = sum(map(self.data.length, positions))
        count = min(samples, len(positions), max(_LEAST, len(positions) * tokens // max(1, total)))
        return self._batches([positions[i * len(positions) // count] for i in range(count)])

    def _batches(self, positions: list[int]) -> list[Batch]:
        """Of samples of like length together, so that little is padding."""
        ordered = sorted(positions, key=lambda i: (self.data.length(i), i))
        return [self.data.batch(ordered[i : i + self.size]).to(self.device) for i in range(0, len(ordered), self.size)]

    @contextmanager
    def changed(self) -> Iterator[Changed]:
        """The model with other weights: what is put into the mapping by name is in it at once, and out again in the end."""
        changed = Changed(self.model)
        try:
            yield changed
        finally:
            for name in changed.names:
                replace(self.model, {name: self.checkpoint.read(name)})

    def loss(self) -> float:
        """Of the model as it is now, on the samples of `fit`."""
        return self.lost(self.seen.figures(self.model))

    def held_out(self) -> dict[str, float | None]:
        """The figures of its task on `stop`."""
        return self.held.figures(self.model)

    def lost(self, figures: dict) -> float:
        """One number for how much is lost, 0 at best."""
        value = figures[self.figure]
        if value is None or not math.isfinite(value):
            return BROKEN
        return max(0.0, 1 - value) if self.figure == "cosine" else value if self.figure == "kl" else value**2

    @property
    def samples(self) -> dict[str, int]:
        return {"measured_on": self.seen.count, "verified_on": self.held.count}


class Changed:
    """Weights that were put into a model. Args: names: of them."""

    def __init__(self, model: Runnable):
        self.model, self.names = model, []

    def __setitem__(self, name: str, values: torch.Tensor) -> None:
        self.names.append(name)
        replace(self.model, {name: values})


class _Answers:
    """What the original says to some batches: a model for `worker.lockstep.compare`."""

    def __init__(self, model: Runnable, batches: list[Batch], task: str):
        self.task, self.batches, self.said, size = task, [], {}, 0
        with torch.no_grad():
            for batch in batches:
                output = model.forward(batch)
                size += output.numel()
                if self.batches and size > _OUTPUTS:
                    break
                self.batches.append(batch)
                self.said[batch.positions] = output
        self.count = sum(map(len, self.batches))

    def forward(self, batch: Batch) -> torch.Tensor:
        return self.said[batch.positions]

    def figures(self, other: Runnable) -> dict[str, float | None]:
        return compare(self, other, self.batches, False)
