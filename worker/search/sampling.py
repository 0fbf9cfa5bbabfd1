"""What an option costs and gives, told from some rows of a matrix: bytes, and by how much the loss would grow.

Where gradients are known the loss is sum_i F_i (w_i - q_i)^2 with F as in `worker.gradient_mapping`; else the squared error of the weights relative to
their size, each matrix by its number of weights. Which options are worth being measured, and what lies between those, is decided by it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from worker import gradient_mapping
from worker.allotment import Sampled
from worker.checkpoint import Checkpoint
from worker.encoded import Encoded
from worker.plan import TensorPlan
from worker.search.encoding import encode, stored
from worker.search.options import PRICED, Option

_SAMPLE = 1 << 13  # weights


@dataclass(frozen=True)
class Told:
    """Of one option on one matrix. `error` is relative, of its weights."""

    bytes: float
    loss: float
    error: float


class _Rows:
    """The statistics of some rows of one matrix, under whatever name."""

    def __init__(self, plan: TensorPlan, rows: torch.Tensor):
        self.plan, self.rows = plan, rows

    def square(self, name: str) -> torch.Tensor:
        return self.plan.statistic("square")[self.rows.cpu()]

    def absolute(self, name: str) -> torch.Tensor:
        return self.plan.statistic("absolute")[self.rows.cpu()]


class Look:
    """A matrix, looked at in `_SAMPLE` of its weights.

    Attributes:
        count: of all of them.
        energy: the squares of all of them, summed, as far as the sample tells.
    """

    def __init__(self, plan: TensorPlan, checkpoint: Checkpoint, device: torch.device, felt: bool):
        tensor = checkpoint.read(plan.spec.name).to(device)
        matrix = plan.matrix(tensor)
        self.plan, self.rows, self.count = plan, matrix.shape[0], matrix.numel()
        chosen = gradient_mapping.some_rows(matrix, _SAMPLE)
        self.part = matrix[chosen].contiguous()
        self.scale = self.count / self.part.numel()
        self.energy = float(self.part.double().square().sum()) * self.scale
        self.f, self.sampled = None, None
        own = replace(plan.spec, shape=tuple(self.part.shape), nbytes=self.part.numel() * self.part.element_size())
        statistics = _Rows(plan, chosen) if felt and plan.statistics is not None else None
        self.own = replace(plan, spec=own, transposed=False, experts=None, statistics=statistics)
        if statistics is not None:
            square = plan.statistic("square").to(device)
            self.f = gradient_mapping.sensitivity(square, None)[chosen] * float(square.double().mean())
            self.sampled = Sampled(plan, PRICED, Encoded(plan.spec, "copied", tensor))

    def told(self, option: Option, output: str) -> Told:
        """Of an option that has no price."""
        encoded = encode(self.own, option, self.part, output, self.part.device)
        gone = (self.part.double() - encoded.dense.double()).square()
        noise = float(gone.sum()) * self.scale
        relative = noise / self.energy if self.energy > 0 else 0.0 if noise == 0 else math.inf
        loss = self.count * relative if self.f is None else float((gone * self.f).sum()) * self.scale
        return Told(stored(encoded, output, self.rows), loss, math.sqrt(relative))

    def octave(self) -> float:
        """log2 of the price at which high resolution has no bit left: 2 less is a bit more."""
        return math.log2(self.sampled.unit * self.sampled.spread or 1e-30)

    def priced(self, prices: list[float]) -> list[Told]:
        """Of codebooks under prices; what their weights lose is not told (0)."""
        return [Told(o.bits / 8, o.loss, 0.0) for o in self.sampled.priced(prices)]
