"""What steps make of a sample: which values a mask leaves, which codes and scales a scheme gives. The arithmetic of `worker.methods` on a few thousand
values, near enough to count bits by and nothing else."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle

from app.normal_levels import normal_levels
from app.recipe import Prune, Quantize
from app.values import Values

_MAGNITUDE = 0x7FFF
_TRIED = 12  # groups on which a search is tried
_SHRINK = [0.4 + 0.05 * i for i in range(13)]


def pruned(values: Values, step: Prune, columns: int, threshold: int | None = None) -> Values:
    """`values` with zeros where the mask would drop them.

    Args:
        columns: inputs of a row.
        threshold: of a global scope, see `shared_threshold`.
    """
    kind, a, b = step.structure
    size = [t & _MAGNITUDE for t in values.tops]
    if kind == "n:m":
        tops = _lowest_dropped(values.tops, size, b, b - a)
    elif kind == "channel":  # whole rows: what matters is how many, and that they lie together
        tops = [0] * (gone := math.floor(step.sparsity * len(size))) + values.tops[gone:]
    elif kind == "block":
        sums = [sum(size[i : i + b]) for i in range(0, len(size), b)]
        gone = set(sorted(range(len(sums)), key=sums.__getitem__)[: math.floor(step.sparsity * len(sums))])
        tops = [0 if i // b in gone else t for i, t in enumerate(values.tops)]
    elif threshold is not None:
        tops = [t if s > threshold else 0 for t, s in zip(values.tops, size, strict=True)]
    else:
        row = min(columns, len(size)) if step.scope == "row" else len(size)
        tops = _lowest_dropped(values.tops, size, row, math.floor(step.sparsity * row))
    return replace(values, tops=tops)


def _lowest_dropped(tops: Sequence[int], size: Sequence[int], group: int, k: int) -> list[int]:
    """Zeros for the k lowest of every whole group."""
    out = list(tops)
    for i in range(0, len(out) - group + 1, max(1, group)):
        for j in sorted(range(i, i + group), key=size.__getitem__)[:k]:
            out[j] = 0
    return out


def shared_threshold(samples: Sequence[tuple[Values, int]], sparsity: float) -> int:
    """The magnitude (top bits) below which the share `sparsity` of all weights lies; each sample stands for its number of weights."""
    weighed = sorted((t & _MAGNITUDE, n / len(v.tops)) for v, n in samples if v.tops for t in v.tops)
    left = sparsity * sum(w for _, w in weighed)
    for size, weight in weighed:
        left -= weight
        if left <= 0:
            return size
    return 0


def half_scales(values: Sequence[float], step: Quantize, group: int) -> bool:
    """Whether float16 keeps the scale of every group here well away from its limits, as `packed` wants it."""
    used = [m / _half_range(step) for m in _absmax(values, group) if m]
    return not used or (min(used) >= 4 * 2.0**-14 and max(used) <= 65504 / 4)


def codes(values: Sequence[float], step: Quantize, group: int) -> tuple[list[int], list[float]]:
    """(unsigned codes, scales) of groups of `group` values."""
    groups = [values[i : i + group] for i in range(0, len(values), max(1, group))]
    tried = groups[:: max(1, len(groups) // _TRIED)] if step.scale_search == "mse" else []
    shrinks = [_searched([g], step) for g in tried] or [1.0]  # every group has its own; those not tried take turns
    out, scales = [], []
    levels = normal_levels(step.num_bits)
    middles = [(a + b) / 2 for a, b in zip(levels, levels[1:], strict=False)]
    low, high = -(1 << step.num_bits - 1), (1 << step.num_bits - 1) - 1
    for g, shrink in zip(groups, cycle(shrinks), strict=False):
        if step.symmetric:
            scale = shrink * max(map(abs, g)) / _half_range(step) or 1.0
            zero = 0
        else:
            least, most = min(0.0, *g) * shrink, max(0.0, *g) * shrink
            scale = (most - least) / (high - low) or 1.0
            zero = round(low - least / scale)
        scales.append(scale)
        out += [_e4m3(v / scale) for v in g] if step.type == "float" else [bisect(middles, v / scale) for v in g] if step.type == "nf" else [min(high, max(low, round(v / scale) + zero)) - low for v in g]
    return out, scales


def _half_range(step: Quantize) -> float:
    if step.type == "nf":
        return 1.0
    return 448.0 if step.type == "float" else ((1 << step.num_bits) - 1) / (1 if step.zero_point == "float" else 2)


def _absmax(values: Sequence[float], group: int) -> list[float]:
    return [max(map(abs, values[i : i + group])) for i in range(0, len(values), max(1, group))]


def _searched(groups: Sequence[Sequence[float]], step: Quantize) -> float:
    """The factor on the absmax scale that loses least, over some groups together."""
    if step.type != "int":
        return 1.0
    limit = (1 << step.num_bits - 1) - 0.5

    def loss(c: float) -> float:
        total = 0.0
        for g in groups:
            scale = c * max(map(abs, g)) / limit or 1.0
            total += sum((v - scale * min(limit, max(-limit, round(v / scale)))) ** 2 for v in g)
        return total

    return min(_SHRINK, key=loss)


def _e4m3(x: float) -> int:
    """The byte of the nearest fp8."""
    sign, x = (128, -x) if x < 0 else (0, x)
    x = min(x, 448.0)
    exponent = max(-6, math.frexp(x)[1] - 1) if x else -6
    mantissa = round(x / 2.0**exponent * 8)  # 8 to 16, or below 8 for a subnormal
    if mantissa == 16:
        exponent, mantissa = exponent + 1, 8
    return sign | (mantissa if mantissa < 8 else (exponent + 7) << 3 | mantissa - 8)
