"""What an option costs and gives, told from some rows of a matrix: bytes, and by how much the loss would grow.

    gradients known     sum_i F_i (w_i - q_i)^2, F as in `worker.gradient_mapping`
    and inputs, too     sum_r G_r (w_r - q_r) H (w_r - q_r)^T over rows, H the second moments of the layer's input, G_r = sum_i F_ri / tr H: the curvature as a
                        Kronecker product (Martens and Grosse, 2015, "Optimizing Neural Networks with Kronecker-factored Approximate Curvature"), which sees what
                        the errors of a row do together
    nothing known       the squared error of the weights relative to their size, each matrix by its number of weights

Which options are worth being measured, and what lies between those, is decided by it. What rounding by gptq leaves of a loss is found once for some widths, on
the same rows: it hardly depends on how scales are shared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from worker import gradient_mapping
from app.recipe import Quantize
from worker.allotment import Sampled
from worker.checkpoint import Checkpoint
from worker.encoded import Encoded
from worker.moments import Sum
from worker.plan import TensorPlan
from worker.reconstruction.solving import solve
from worker.search.encoding import encode, stored
from worker.search.options import PRICED, Option

_SAMPLE = 1 << 13  # weights
_WIDTHS = (2, 3, 4)  # that are rounded by gptq; more bits gain what four do
_MASKED = 3  # bits under a mask, of which most of what is lost is by what is pruned


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
        seen: of the inputs of its layer; None where they are not known, or no gradients are.
    """

    def __init__(self, plan: TensorPlan, checkpoint: Checkpoint, device: torch.device, felt: bool, seen: Sum | None = None):
        tensor = checkpoint.read(plan.spec.name).to(device)
        matrix = plan.matrix(tensor)
        self.plan, self.rows, self.count = plan, matrix.shape[0], matrix.numel()
        chosen = gradient_mapping.some_rows(matrix, _SAMPLE)
        self.part = matrix[chosen].contiguous()
        self.scale = self.count / self.part.numel()
        self.energy = float(self.part.double().square().sum()) * self.scale
        self.f, self.sampled, self.seen = None, None, None
        self._more: list[float] = []  # of what follows gradients weight by weight: log of what the loss of whole rows is of that by single weights
        self._gained: dict[int | str, list[float]] = {}  # by bits, or by mask
        statistics = _Rows(plan, chosen) if felt and plan.statistics is not None else None
        self.own = replace(plan, spec=_shape(plan, self.part), transposed=False, experts=None, statistics=statistics)
        self.wide = torch.cat([self.part, matrix[int(matrix.abs().amax(1).argmax())][None]])  # with the largest weight, which a scale for all goes by
        if statistics is not None:
            square = plan.statistic("square").to(device)
            self.f = gradient_mapping.sensitivity(square, None)[chosen] * float(square.double().mean())
            self.sampled = Sampled(plan, PRICED, Encoded(plan.spec, "copied", tensor))
            if seen is not None:
                self.seen, self.gram = seen, (seen.gram / seen.tokens).to(device)
                self.by_row = self.f.double().sum(1) / self.gram.diagonal().double().sum()

    def told(self, option: Option, output: str) -> Told:
        """Of an option that has no price."""
        whole = option.uniform and option.steps[0].strategy == "tensor"
        part = self.wide if whole else self.part
        encoded = encode(replace(self.own, spec=_shape(self.plan, part)) if whole else self.own, option, part, output, part.device)
        return self._told(encoded, output, not option.uniform)

    def compensated(self, option: Option, told: Told, output: str) -> Told:
        """Of its twin, by what that gains at its number of bits or, where there is a mask, under that one. Args: told: of the option itself."""
        bits = min(max(option.steps[-1].num_bits, _WIDTHS[0]), _WIDTHS[-1])
        kind = repr(option.mask) if option.mask else bits
        if kind not in self._gained:
            quantize = Quantize(method="quantize", num_bits=_MASKED if option.mask else bits, scale_search="mse")
            alike = Option((option.mask, quantize) if option.mask else (quantize,))
            plain, solved = self.told(alike, output), solve(replace(self.own, steps=list(alike.twin.steps)), self.part, self.seen)
            found = self._told(replace(solved, lossless=output == "packed"), output)
            self._gained[kind] = [b / a if a > 0 else 1.0 for a, b in ((plain.bytes, found.bytes), (plain.loss, found.loss), (plain.error, found.error))]
        size, loss, error = self._gained[kind]
        return Told(told.bytes * size, told.loss * loss, told.error * error)

    def _told(self, encoded: Encoded, output: str, fisher: bool = False) -> Told:
        gone = self.part.double() - encoded.dense[: len(self.part)].double()
        squares = gone.square()
        noise = float(squares.sum()) * self.scale
        relative = noise / self.energy if self.energy > 0 else 0.0 if noise == 0 else math.inf
        if self.f is None:
            loss = self.count * relative
        else:
            loss = float((squares * self.f).sum()) * self.scale
        if self.seen is not None:
            whole = float((((gone.float() @ self.gram) * gone).sum(1) * self.by_row).sum()) * self.scale
            if fisher and loss > 0 and whole > 0:
                self._more.append(math.log(whole / loss))
            loss = whole
        return Told(stored(encoded, output, self.rows), loss, math.sqrt(relative))

    def octave(self) -> float:
        """log2 of the price at which high resolution has no bit left: 2 less is a bit more."""
        return math.log2(self.sampled.unit * self.sampled.spread or 1e-30)

    def priced(self, prices: list[float]) -> list[Told]:
        """Of codebooks under prices; what their weights lose is not told (0). By rows their loss is as much more than by single weights as that of what was told
        before and follows the gradients too."""
        more = math.exp(sum(self._more) / len(self._more)) if self._more else 1.0
        return [Told(o.bits / 8, o.loss * more, 0.0) for o in self.sampled.priced(prices)]


def _shape(plan: TensorPlan, part: torch.Tensor):
    return replace(plan.spec, shape=tuple(part.shape), nbytes=part.numel() * part.element_size())
