"""Which of their options several groups take, for any sum of sizes: the lower convex hull of each group, and the path along all of them.

From everybody's smallest option on, the step that saves most loss for a byte is taken next. Every choice on that path is optimal for its size (Shoham and
Gersho, 1988, "Efficient bit allocation for an arbitrary set of quantizers": equal slopes); between two of them `worker.kernels.allocation` may find more.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from worker.kernels.allocation import allocate

_EXACT = 1 << 13  # options in all, up to which what is left of a budget is shared out exactly


def hull(sizes: Sequence[float], losses: Sequence[float]) -> list[int]:
    """The options on the lower convex hull, by size ascending, losses descending. Of equal ones the first stays.

    Args:
        sizes, losses: of each option, finite.
    """
    order = sorted(range(len(sizes)), key=lambda i: (sizes[i], losses[i], i))
    out: list[int] = []
    for i in order:
        if out and losses[i] >= losses[out[-1]]:
            continue
        while len(out) > 1 and _slope(sizes, losses, out[-2], out[-1]) <= _slope(sizes, losses, out[-1], i):
            out.pop()
        out.append(i)
    return out


def _slope(sizes: Sequence[float], losses: Sequence[float], a: int, b: int) -> float:
    """Loss saved for a byte more, from option a to b."""
    return (losses[a] - losses[b]) / (sizes[b] - sizes[a])


@dataclass(frozen=True)
class Path:
    """Choices from the smallest sum of sizes to the largest that is worth while, each optimal for its size: the first one, and what changes from one to the
    next."""

    start: list[int]
    steps: list[tuple[int, int]]  # (group, its next option)

    def __len__(self) -> int:
        return len(self.steps) + 1

    def __getitem__(self, n: int) -> list[int]:
        """The choice after `n` steps."""
        choice = list(self.start)
        for group, option in self.steps[:n]:
            choice[group] = option
        return choice


def path(sizes: Sequence[Sequence[float]], losses: Sequence[Sequence[float]]) -> Path:
    """Of groups with options, the sizes and losses of each."""
    hulls = [hull(s, x) for s, x in zip(sizes, losses, strict=True)]
    at, found = [0] * len(hulls), []
    steps = [(-_slope(sizes[g], losses[g], h[0], h[1]), g) for g, h in enumerate(hulls) if len(h) > 1]
    heapq.heapify(steps)
    while steps:
        _, g = heapq.heappop(steps)
        at[g] += 1
        h = hulls[g]
        found.append((g, h[at[g]]))
        if at[g] + 1 < len(h):
            heapq.heappush(steps, (-_slope(sizes[g], losses[g], h[at[g]], h[at[g] + 1]), g))
    return Path([h[0] for h in hulls], found)


def running(sizes: Sequence[Sequence[float]], along: Path) -> list[float]:
    """The sum of the sizes of every choice of a path."""
    choice, total = list(along.start), sum(s[o] for s, o in zip(sizes, along.start, strict=True))
    out = [total]
    for group, option in along.steps:
        total += sizes[group][option] - sizes[group][choice[group]]
        choice[group] = option
        out.append(total)
    return out


def best_within(sizes: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], budget: int) -> list[int] | None:
    """The choice of least loss whose sizes come to `budget` at most; None where none does. Of many options the last one of `path` that fits."""
    if sum(map(min, sizes)) > budget:
        return None
    if sum(map(len, sizes)) <= _EXACT and budget > 0:
        exact = allocate(sizes, losses, budget)
        if exact is not None:
            return exact
    along = path(sizes, losses)
    return along[bisect_right(running(sizes, along), budget) - 1]
