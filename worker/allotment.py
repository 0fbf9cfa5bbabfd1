"""How many bits each tensor gets, so that all of a step's together take `avg_bits` a weight and the loss grows least.

Each tensor has options, measured on a sample of its weights: what it would take, codebooks included and codes at their entropy, and by how much the loss
would grow, sum_i F_i (w_i - q_i)^2. For rows and groups options are the widths 2 to 8; for whole tensors prices of a bit, which are the same for all
tensors (equal slopes are what a best allotment has), and one code width that goes with them. Matrices that are fused (`app.siblings`) take one and the
same option. The choice is exact (`worker.kernels.allocation`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from app.errors import InputRefused
from app.recipe import Quantize
from app.siblings import fused
from worker import gradient_mapping
from worker.encoded import Encoded
from worker.kernels import codebooks
from worker.kernels.allocation import allocate
from worker.plan import Allotment, TensorPlan

_SAMPLE = 1 << 13  # weights that options are measured on
_AROUND = range(-8, 9)  # prices tried: half octaves around the one that high resolution suggests, a quarter of a bit each
_BEYOND = range(0, 48)
_TABLE, _LOST = 8, 0.015  # bits of a coder's table for each code, and the share of a code's bits that it loses to whole ones
_HEAD = 700  # bits of payload heads
_AT_ZERO = 2 * math.log(2) * math.pi * math.e / 6


@dataclass(frozen=True)
class Option:
    bits: float  # of the whole tensor
    loss: float
    num_bits: int
    slope: float = 0.0


def allot(step: Quantize, plans: list[TensorPlan], before: Callable[[TensorPlan], Encoded]) -> None:
    """Resolve the step of each plan, and set its allotment.

    Args:
        before: a tensor as it comes to the step.

    Raises:
        InputRefused: not-representable, when even the smallest options take more.
    """
    looked = [Sampled(plan, step, before(plan)) for plan in sorted(plans, key=lambda plan: plan.spec.name)]
    groups: dict[str, list[int]] = {}
    for i, s in enumerate(looked):
        groups.setdefault(fused(s.plan.spec.name), []).append(i)
    count = sum(s.count for s in looked)
    budget = math.floor(step.avg_bits * count)
    for options in _offers(step, looked):
        together = [list(zip(*(options[i] for i in members), strict=True)) for members in groups.values()]
        sizes = [[math.ceil(sum(o.bits for o in option)) for option in group] for group in together]
        found = allocate(sizes, [[sum(o.loss for o in option) for option in group] for group in together], budget)
        if found is not None:
            break
    else:
        least = sum(map(min, sizes)) / count
        other = "" if step.strategy == "tensor" else "; strategy tensor has one codebook for all rows"
        what = f"codes and codebooks per {step.strategy} take {least:.3g} bits a weight at least"
        raise InputRefused("not-representable", f"avg_bits {step.avg_bits:g} is too little: {what}{other}")
    spare = budget / max(1, sum(size[which] for size, which in zip(sizes, found, strict=True)))
    for members, group, which in zip(groups.values(), together, found, strict=True):
        num_bits = max(o.num_bits for o in group[which])
        for i, option in zip(members, group[which], strict=True):
            plan, bits = looked[i].plan, option.bits * spare
            own = step.model_copy(update={"num_bits": num_bits, "avg_bits": round(bits / looked[i].count, 4)})
            plan.steps = [own if s == step else s for s in plan.steps]
            plan.allotment = Allotment(num_bits, option.slope, math.floor(bits))


def _offers(step: Quantize, looked: list[Sampled]) -> Iterator[list[list[Option]]]:
    """The options of every tensor; where those do not fit, ones that reach down to next to nothing."""
    if step.strategy != "tensor":
        yield [s.widths() for s in looked]
        return
    felt = [s for s in looked if s.unit > 0 and s.spread > 0] or looked
    octave = sum(s.count * math.log2(s.unit * s.spread or 1) for s in felt) / sum(s.count for s in felt)
    octave -= 2 * min(8.0, step.avg_bits * sum(s.count for s in looked) / max(1, sum(s.kept for s in looked)))
    for around in (_AROUND, _BEYOND):
        yield [s.priced([2 ** (octave + i / 2) for i in around]) for s in looked]


class Sampled:
    """A tensor, and what is known of it from a sample.

    Attributes:
        count: of its weights.
        books: codebooks of a whole tensor: one, or one for each expert.
        unit: of F, that losses in the unit of `gradient_mapping.sensitivity` have to be multiplied by.
        spread: the slope at 0 bits, as high resolution has it; 4 times less with each bit.
    """

    def __init__(self, plan: TensorPlan, step: Quantize, encoded: Encoded):
        matrix, self.books = plan.matrix(encoded.dense), plan.experts or 1
        self.plan, self.step, self.shape, self.count = plan, step, matrix.shape, matrix.numel()
        kept = None if encoded.mask is None else plan.matrix(encoded.mask)
        square = plan.statistic("square").to(matrix.device)
        f = gradient_mapping.sensitivity(square, kept)
        self.zeros = None if kept is None else self.count - int(kept.sum())
        self.kept = self.count - (self.zeros or 0)
        self.unit = float(square.double().sum() if kept is None else (square * kept).double().sum()) / max(1, self.kept)  # of F, that f counts in
        self.x, self.f = gradient_mapping.sample(matrix, f, kept, _SAMPLE)
        self.each = self.kept / self.x.numel()  # weights that one of the sample stands for
        self.rows = None
        if step.strategy != "tensor":
            rows = gradient_mapping.some_rows(matrix, _SAMPLE)
            self.rows = matrix[rows], f[rows], None if kept is None else kept[rows]
        variance = float((self.f * (self.x - self.x.mean()).square()).double().mean())
        self.spread = _AT_ZERO * variance  # the slope at 0 bits, as high resolution has it; 4 times less with each bit

    def priced(self, prices: list[float]) -> list[Option]:
        """One for each price of a bit."""
        out, pruned = [], None if self.zeros is None else round(self.zeros / self.each)
        for price in prices:
            slope = price / self.unit if self.unit > 0 else max(self.spread, 1e-30) * 4**-self.step.avg_bits
            c, rates = gradient_mapping.priced_levels(self.x, self.f, slope, 256, pruned, iterations=4)
            codes = codebooks.assign(self.x, self.f, c, rates)
            count = torch.bincount(codes[0], minlength=c.shape[1])
            if pruned:
                count[int((c[0] == 0).nonzero()[0, 0])] += pruned
            out.append(Option(self._stored(count, self.books * c.numel()), self._loss(self.x, self.f, c, codes) * self.each, _width(c.shape[1]), slope))
        return out

    def widths(self) -> list[Option]:
        """One for each number of bits, 2 to 8."""
        matrix, f, kept = self.rows
        size, out = gradient_mapping.shared_by(matrix, self.step), []
        x, f = gradient_mapping.grouped(matrix.float(), size), gradient_mapping.grouped(f, size)
        books = self.shape[0] * -(-self.shape[1] // size)
        for num_bits in range(2, 9):
            c = codebooks.fit(x, f, gradient_mapping.level_count(num_bits, size, kept is not None), zero=kept is not None, iterations=4)
            codes = codebooks.nearest(x, c)
            bits = self._stored(torch.bincount(codes.reshape(-1)), books * c.shape[1])
            out.append(Option(bits, self._loss(x, f, c, codes) * self.count / matrix.numel(), num_bits))
        return out

    def _loss(self, x: torch.Tensor, f: torch.Tensor, c: torch.Tensor, codes: torch.Tensor) -> float:
        return self.unit * float(((x - c.gather(1, codes)).square() * f).double().sum())

    def _stored(self, count: torch.Tensor, levels: int) -> float:
        """Bits of all codes, by how often each occurs in the sample, and of the levels."""
        share = count[count > 0].double() / count.sum()
        return self.count * float(-(share * share.log2()).sum()) * (1 + _LOST) + 16 * levels + _TABLE * len(share) + _HEAD


def _width(levels: int) -> int:
    """Bits of a code, with room for what the sample has missed. Above 4 a code is a byte to the entropy coder, whatever it might take."""
    return 2 if levels <= 3 else 4 if levels <= 12 else 8
