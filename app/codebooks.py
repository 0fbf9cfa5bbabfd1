"""What codebooks make of a sample: codes and levels by k-means in one dimension (Lloyd), near enough to count bits by and nothing else.

The work weighs values by their squared gradients, which are not at hand here, so bytes told from this may be off by `WEIGHED` more than others.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate

WEIGHED = 0.08
RECOVERED = 0.3
"""How far bytes may be off, as a share: values weighed by gradients; values that recovery moves."""
_SEEN = 1 << 12  # values that the levels are found from
_ROUNDS = 20


def codes(values: Sequence[float], num_bits: int, group: int, zeros: bool) -> tuple[list[int], list[float]]:
    """(codes, levels of all groups) of groups of `group` values.

    Args:
        zeros: a level is kept for values that are exactly 0.
    """
    groups = [values[i : i + group] for i in range(0, len(values), max(1, group))]
    sizes = [(sum(v * v for v in g) / max(1, sum(v != 0 for v in g))) ** 0.5 or 1.0 for g in groups]
    scaled = [[v / s for v in g] for g, s in zip(groups, sizes, strict=True)]
    flat = sorted(v for g in scaled for v in g if v or not zeros)
    found = _levels(flat[:: max(1, len(flat) // _SEEN)], (1 << num_bits) - zeros)
    levels = sorted([*found, *([0.0] if zeros else [])])
    between = [(a + b) / 2 for a, b in zip(levels, levels[1:], strict=False)]
    none = levels.index(0.0) if zeros else -1
    out = [none if zeros and not v else bisect(between, v) for g in scaled for v in g]
    return out, [level * s for s in sizes for level in levels]


def _levels(values: Sequence[float], count: int) -> list[float]:
    """Levels that are the means of the sorted values nearest to them."""
    if not values:
        return [0.0]
    sums = [0.0, *accumulate(values)]
    levels = [values[min(len(values) - 1, (2 * i + 1) * len(values) // (2 * count))] for i in range(count)]
    for _ in range(_ROUNDS):
        edges = [0, *(bisect(values, (a + b) / 2) for a, b in zip(levels, levels[1:], strict=False)), len(values)]
        levels = [(sums[b] - sums[a]) / (b - a) if b > a else old for a, b, old in zip(edges, edges[1:], levels, strict=False)]
    return levels
