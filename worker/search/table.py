"""Bytes and losses of all options of all groups.

Every option is told from samples (`worker.search.sampling`); where the model can be run, a few of each group, around what is likely to be chosen, are carried
out on the whole matrices, and what the model then says is measured, one group at a time. Between them the loss goes with what the samples tell, on a
logarithmic scale: of one matrix, errors of twice the size do about four times the harm, and how much harm that is only the outputs know.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from app.memory import TRIED
from worker import report
from worker.checkpoint import Checkpoint
from worker.encoded import Encoded
from worker.kernels.front import hull
from worker.search.effect import Effect
from worker.search.encoding import encode, stored
from worker.search.groups import Group
from worker.search.options import Option
from worker.search.sampling import Look, Told

_MOST_BITS, _LEAST_BITS = 6.5, 1.06  # a weight, between which prices are looked at; below there is no `avg_bits`
_HALF = 1.0  # octaves of a price from one to the next: half a bit
AROUND = (0, 2, -2, 4, -4)
"""Octaves of slope around the one that is likely, at which options are measured: a bit more and less, and two."""
SPREAD = (3.2, 2.2, 4.5, 1.5, 6.0)
"""Bits a weight at which they are where nothing is likely."""


@dataclass
class Row:
    """The options of one group: what each takes and loses. `measured`: option -> loss on outputs."""

    group: Group
    options: list[Option]
    told: list[Told]
    measured: dict[int, float] = field(default_factory=dict)

    def losses(self) -> list[float]:
        """Of every option: measured, or between those that are."""
        if not self.measured:
            return [t.loss for t in self.told]
        known = sorted((max(self.told[i].loss, 1e-300), max(loss, 1e-12)) for i, loss in self.measured.items())
        return [self.measured[i] if i in self.measured else _between(known, max(t.loss, 1e-300)) for i, t in enumerate(self.told)]


def _between(known: list[tuple[float, float]], x: float) -> float:
    """The value at x of points (x, y) on log scales: in a straight line from one to the next, beyond them in proportion."""
    logs = [(math.log(a), math.log(b)) for a, b in known]
    at = math.log(x)
    below, above = [p for p in logs if p[0] <= at], [p for p in logs if p[0] >= at]
    if not below:
        return math.exp(logs[0][1] + at - logs[0][0])
    if not above:
        return math.exp(logs[-1][1] + at - logs[-1][0])
    (a, y), (b, z) = below[-1], above[0]
    return math.exp(y if a == b else y + (z - y) * (at - a) / (b - a))


class Table:
    """Made by `look`; `measure` adds what the outputs tell."""

    def __init__(self, checkpoint: Checkpoint, output: str, device: torch.device):
        self.checkpoint, self.output, self.device = checkpoint, output, device
        self.rows: list[Row] = []

    def look(self, found: list[Group], options: list[Option], priced: bool, most_error: float | None, progress: Callable[[int], None]) -> None:
        """Tell every option of every group from samples.

        Args:
            priced: whether codebooks under prices are among them.
            most_error: relative, that a tensor may have; options that have more are left out.
            progress: told of weights.
        """
        for group in found:
            looks = [Look(p, self.checkpoint, self.device, group.felt) for p in group.plans]
            fit = [o for o in options if _fits(o, group, self.output) and (group.felt or o.uniform)]
            told = [_together([look.told(o, self.output) for look in looks]) for o in fit]
            if priced and group.felt and most_error is None:
                more = self._priced(looks)
                fit, told = fit + [o for o, _ in more], told + [t for _, t in more]
            good = [i for i, t in enumerate(told) if math.isfinite(t.loss) and (most_error is None or t.error <= most_error)]
            self.rows.append(Row(group, [fit[i] for i in good], [told[i] for i in good]))
            progress(group.count)

    def _priced(self, looks: list[Look]) -> list[tuple[Option, Told]]:
        """At prices that are multiples of one another, the same for all groups."""
        count = sum(look.count for look in looks)
        octave = sum(look.octave() * look.count for look in looks) / count
        first, last = math.floor((octave - 2 * _MOST_BITS) / _HALF), math.ceil(octave / _HALF)
        prices = [2.0 ** (k * _HALF) for k in range(first, last + 1)]
        each = [look.priced(prices) for look in looks]
        found = [(Option((), price), _together(told)) for price, told in zip(prices, map(list, zip(*each, strict=True)), strict=True)]
        return [(o, t) for o, t in found if _LEAST_BITS <= 8 * t.bytes / count <= _MOST_BITS]

    def measure(self, effect: Effect, target: float | None, kept: Cache, progress: Callable[[int], None]) -> None:
        """Measure some options of each group that the model's output depends on.

        Args:
            target: bytes of all groups together, where it is known what is looked for.
            progress: told of weights.
        """
        likely = slope_at([[t.bytes for t in r.told] for r in self.rows], [[t.loss for t in r.told] for r in self.rows], target) if target else None
        for row in self.rows:
            for i in anchors(row, likely) if row.group.felt else ():
                encoded = kept.all(row.group, row.options[i])
                worst = max(self._error(e) for e in encoded)
                row.told[i] = Told(sum(stored(e, self.output) for e in encoded), row.told[i].loss, worst)
                with effect.changed() as values:
                    for e in encoded:
                        values[e.spec.name] = e.dense
                    row.measured[i] = effect.loss()
            progress(row.group.count)
        self._unfelt()

    def _error(self, encoded: Encoded) -> float:
        """Relative, of the weights of one matrix."""
        return report.errors(self.checkpoint.read(encoded.spec.name), encoded.dense)["relative_error"] or 0.0

    def _unfelt(self) -> None:
        """What no output depends on loses by the errors of its weights, as the others do on the whole."""
        lost = [(loss, r.group.count * r.told[i].error ** 2) for r in self.rows for i, loss in r.measured.items() if r.told[i].error > 0]
        rate = sum(a for a, _ in lost) / total if (total := sum(b for _, b in lost)) > 0 else 1.0
        for row in self.rows:
            if not row.group.felt:
                row.measured = {i: rate * t.loss for i, t in enumerate(row.told)}


def _fits(option: Option, group: Group, output: str) -> bool:
    """compressed-tensors has whole groups only; a group of a whole row is what another option is."""
    sizes = [s.group_size for s in option.steps if getattr(s, "group_size", None)]
    widths = [p.matrix_shape[1] for p in group.plans]
    return not any(w % s if output == "compressed-tensors" else s >= w for s in sizes for w in widths)


def _together(told: list[Told]) -> Told:
    return Told(sum(t.bytes for t in told), sum(t.loss for t in told), max(t.error for t in told))


def slope_at(sizes: list[list[float]], losses: list[list[float]], target: float) -> float:
    """What a byte saves in loss where the sizes come to `target`: the slope that all hulls are cut at there."""
    steps = sorted(
        ((x[a] - x[b]) / (s[b] - s[a]), s[b] - s[a]) for s, x in zip(sizes, losses, strict=True) for h in [hull(s, x)] for a, b in zip(h, h[1:], strict=False)
    )[::-1]
    left = target - sum(map(min, sizes))
    for slope, size in steps:
        left -= size
        if left <= 0:
            return slope
    return steps[-1][0] if steps else 1.0


def anchors(row: Row, slope: float | None) -> list[int]:
    """Options of a group's hull to be measured: at the slope that is likely and at multiples of it, else at some numbers of bits."""
    sizes, losses = [t.bytes for t in row.told], [t.loss for t in row.told]
    h = hull(sizes, losses)
    if slope is None:
        return list(dict.fromkeys(min(h, key=lambda i: abs(8 * sizes[i] / row.group.count - bits)) for bits in SPREAD))
    return list(dict.fromkeys(min(h, key=lambda i: losses[i] + slope * 2.0**octaves * sizes[i]) for octaves in AROUND))


class Cache:
    """Encoded matrices, as long as their values take no more than `app.memory.TRIED` bytes together; others are encoded anew each time."""

    def __init__(self, checkpoint: Checkpoint, output: str, device: torch.device):
        self.checkpoint, self.output, self.device = checkpoint, output, device
        self.kept: dict[tuple[str, str], Encoded] = {}
        self.bytes = 0

    def all(self, group: Group, option: Option) -> list[Encoded]:
        return [self.one(p, option) for p in group.plans]

    def one(self, plan, option: Option) -> Encoded:
        key = plan.spec.name, repr(option)
        if key in self.kept:
            return self.kept[key]
        encoded = encode(plan, option, self.checkpoint.read(plan.spec.name), self.output, self.device)
        if self.bytes + encoded.dense.nbytes <= TRIED:
            self.bytes += encoded.dense.nbytes
            self.kept[key] = encoded
        return encoded
