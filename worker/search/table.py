"""Bytes and losses of all options of all groups.

Every option is told from samples (`worker.search.sampling`); where the model can be run, a few of each group, around what is likely to be chosen, are carried
out on the whole matrices, and what the model then says is measured, one group at a time. Between them the loss goes with what the samples tell, on a
logarithmic scale: of one matrix, errors of twice the size do about four times the harm, and how much harm that is only the outputs know. What is rounded by
gptq goes by what is measured of rounding to the nearest: it loses less because less of its error reaches the layer's output, which the samples tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from worker.checkpoint import Checkpoint
from worker.kernels.front import hull
from worker.moments import Sum
from worker.search.cache import Cache
from worker.search.effect import Effect
from worker.search.groups import Group
from worker.search.inputs import rounds
from worker.search.options import Option
from worker.search.sampling import Look, Told

_MOST_BITS, _LEAST_BITS = 6.5, 1.06  # a weight, between which prices are looked at; below there is no `avg_bits`
_HALF = 1.0  # octaves of a price from one to the next: half a bit
AROUND = {"scales": (-1, 2), "levels": (0,)}
"""Of each kind of option, octaves of slope around the one that is likely, at which options are measured: two octaves are a bit."""
SPREAD = {"scales": (2.5, 4.5), "levels": (3.2,)}
"""Bits a weight at which they are where nothing is likely."""


def kind(option: Option) -> str:
    return "scales" if option.uniform else "levels"


@dataclass
class Row:
    """The options of one group: what each takes and loses. `measured`: option -> loss on outputs."""

    group: Group
    options: list[Option]
    told: list[Told]
    measured: dict[int, float] = field(default_factory=dict)

    def losses(self) -> list[float]:
        """Of every option: measured, or between those of its kind that are."""
        if not self.measured:
            return [t.loss for t in self.told]
        kinds = list(map(kind, self.options))
        known = {k: [i for i in self.measured if kinds[i] == k] or list(self.measured) for k in set(kinds)}
        points = {k: sorted((max(self.told[i].loss, 1e-300), max(self.measured[i], 1e-12)) for i in of) for k, of in known.items()}
        return [self.measured[i] if i in self.measured else _between(points[kinds[i]], max(t.loss, 1e-300)) for i, t in enumerate(self.told)]

    def near(self, most: float | None) -> list[int]:
        """Options whose relative error, as far as it is told, is `most` at most; all where that is None."""
        return [i for i, (o, t) in enumerate(zip(self.options, self.told, strict=True)) if most is None or (o.price is None and t.error <= most)]

    def only(self, left: list[int]) -> Row:
        """The same with these of its options."""
        return Row(self.group, [self.options[i] for i in left], [self.told[i] for i in left], {left.index(i): x for i, x in self.measured.items() if i in left})


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

    def look(self, found: list[Group], options: list[Option], priced: bool, effect: Effect | None, progress: Callable[[int], None]) -> None:
        """Tell every option of every group from samples.

        Args:
            priced: whether codebooks under prices are among them.
            effect: of the model, which tells what goes into its layers; then rounding by gptq is among them.
            progress: told of weights.
        """
        for part, seen in rounds(found, effect):
            for group in part:
                self.rows.append(self._row(group, options, priced, seen))
                progress(group.count)

    def _row(self, group: Group, options: list[Option], priced: bool, seen: Mapping[str, Sum]) -> Row:
        looks = [Look(p, self.checkpoint, self.device, group.felt, seen.get(p.spec.name)) for p in group.plans]
        fit = [o for o in options if _fits(o, group, self.output) and (group.felt or o.uniform)]
        each = [[look.told(o, self.output) for look in looks] for o in fit]
        told = list(map(_together, each))
        if all(look.seen is not None for look in looks):
            for option, own in [(o, t) for o, t in zip(fit, each, strict=True) if o.has_twin]:
                fit.append(option.twin)
                told.append(_together([look.compensated(option, t, self.output) for look, t in zip(looks, own, strict=True)]))
        if priced and group.felt:
            more = self._priced(looks)
            fit, told = fit + [o for o, _ in more], told + [t for _, t in more]
        good = [i for i, t in enumerate(told) if math.isfinite(t.loss)]
        return Row(group, fit, told).only(good)

    def _priced(self, looks: list[Look]) -> list[tuple[Option, Told]]:
        """At prices that are multiples of one another, the same for all groups."""
        count = sum(look.count for look in looks)
        octave = sum(look.octave() * look.count for look in looks) / count
        first, last = math.floor((octave - 2 * _MOST_BITS) / _HALF), math.ceil(octave / _HALF)
        prices = [2.0 ** (k * _HALF) for k in range(first, last + 1)]
        each = [look.priced(prices) for look in looks]
        found = [(Option((), price), _together(told)) for price, told in zip(prices, map(list, zip(*each, strict=True)), strict=True)]
        return [(o, t) for o, t in found if _LEAST_BITS <= 8 * t.bytes / count <= _MOST_BITS]

    def measure(self, effect: Effect, target: float | None, most_error: float | None, kept: Cache, progress: Callable[[int], None]) -> None:
        """Measure some options of each group that the model's output depends on, beside those that are measured already.

        Args:
            target: bytes of all groups together, where it is known what is looked for.
            most_error: relative, beyond which an option is of no use.
            progress: told of weights.
        """
        likely = slope_at([[t.bytes for t in r.told] for r in self.rows], [[t.loss for t in r.told] for r in self.rows], target) if target else None
        for row in self.rows:
            for i in anchors(row, likely, row.near(most_error)) if row.group.felt else ():
                if i not in row.measured:
                    with effect.changed() as values:
                        for e in kept.all(row.group, row.options[i]):
                            values[e.spec.name] = e.dense
                        row.measured[i] = effect.loss()
            progress(row.group.count)
        self._unfelt()

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


def anchors(row: Row, slope: float | None, near: list[int]) -> list[int]:
    """Options of a group to be measured, on the hull of each kind: at the slope that is likely and at multiples of it, else at some numbers of bits. What is
    rounded by gptq is not measured: it loses what other scale factors do, of which the same is told. Args: near: options that count."""
    sizes, losses, found = [t.bytes for t in row.told], [t.loss for t in row.told], []
    for name in AROUND:
        own = [i for i in near if kind(row.options[i]) == name and not row.options[i].compensated]
        h = [own[i] for i in hull([sizes[i] for i in own], [losses[i] for i in own])]
        if h and slope is None:
            found += [min(h, key=lambda i: abs(8 * sizes[i] / row.group.count - bits)) for bits in SPREAD[name]]
        elif h:
            found += [min(h, key=lambda i: losses[i] + slope * 2.0**octaves * sizes[i]) for octaves in AROUND[name]]
    return list(dict.fromkeys(found))
