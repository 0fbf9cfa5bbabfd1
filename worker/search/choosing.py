"""Which choices are worth being held against the model, and which of them keeps to the budget: the search proper, on a table that is filled already.

Losses of matrices are taken to add up, which they nearly do; what is chosen by them is verified as a whole. Three ways to weigh are tried where outputs
were measured: by them, by gradients, and by the geometric mean of both, for each of the first two may mislead. Beside them stands the best recipe that has
one and the same option for all, so that a search is never worse than those. What is rounded by gptq is not verified here, for that takes the whole model.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from worker.kernels.front import Path, best_within, path, running
from worker.search.options import Option
from worker.search.table import Row

Choice = tuple[int, ...]
"""The option of each group, by its place among the group's own."""


@dataclass(frozen=True)
class Point:
    """A choice that was verified. `bytes`: of the whole result, as predicted; `lost`: one number, 0 at best; `figures`: on held-out samples."""

    how: str
    choice: Choice
    bytes: float
    lost: float
    figures: dict


class Choosing:
    """Args:
    rows: of the table.
    fixed: bytes of the result beside the groups.
    verify: what a choice loses on held-out samples: (lost, figures); None where the model is not run.
    """

    def __init__(self, rows: list[Row], fixed: float, verify: Callable[[Choice], tuple[float, dict]] | None):
        self.rows, self.fixed, self._verify = rows, fixed, verify
        self.sizes = [[math.ceil(t.bytes) for t in r.told] for r in rows]
        self.points: dict[Choice, Point] = {}
        by_samples = [[t.loss for t in r.told] for r in rows]
        if verify is None:
            self.ways = {"weights" if not any(r.measured for r in rows) else "outputs": by_samples}
        else:
            by_outputs = [r.losses() for r in rows]
            self.ways = {"outputs": by_outputs, "gradients": by_samples, "both": _means(by_outputs, by_samples)}

    def bytes(self, choice: Choice) -> float:
        return self.fixed + sum(s[o] for s, o in zip(self.sizes, choice, strict=True))

    def smallest(self) -> Choice:
        return tuple(min(range(len(s)), key=lambda i: (s[i], i)) for s in self.sizes)

    def best(self) -> Choice:
        """Of least loss, whatever it takes."""
        losses = next(iter(self.ways.values()))
        return tuple(min(range(len(x)), key=lambda i: (x[i], s[i])) for x, s in zip(losses, self.sizes, strict=True))

    def finalists(self, room: float) -> Iterator[tuple[str, Choice]]:
        """What may be best of all whose groups come to `room` bytes at most."""
        for how in self.ways:
            if (choice := self.by(how, room)) is not None:
                yield f"chosen by {how}", choice
        if (found := self.alike(room)) is not None:
            yield "one option for all", found

    def options(self, choice: Choice) -> tuple:
        """The options themselves."""
        return tuple(r.options[o] for r, o in zip(self.rows, choice, strict=True))

    def foreseen(self, choice: Choice) -> float:
        """What a choice loses, by the way that is trusted most."""
        return sum(x[o] for x, o in zip(list(self.ways.values())[-1], choice, strict=True))

    def alike(self, room: float, good: Callable[[Option], bool] = lambda option: True) -> Choice | None:
        """The best choice that has one option for all groups. Args: good: which options count."""
        best = None
        for option in filter(good, self.rows[0].options if self.rows else ()):
            try:
                choice = tuple(r.options.index(option) for r in self.rows)
            except ValueError:
                continue
            lost = self.foreseen(choice)
            if self.bytes(choice) - self.fixed <= room and (best is None or lost < best[0]):
                best = lost, choice
        return best and best[1]

    def by(self, how: str, room: float) -> Choice | None:
        """The best within so many bytes by one of the ways."""
        found = best_within(self.sizes, self.ways[how], math.floor(room))
        return None if found is None else tuple(found)

    def as_good_as(self, lost: float) -> Choice:
        """The smallest on the path of the way that is trusted most that is foreseen to lose no more."""
        along = path(self.sizes, list(self.ways.values())[-1])
        low, high = 0, len(along) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.foreseen(tuple(along[middle])) <= lost else (middle + 1, high)
        return tuple(along[high])

    def verified(self, how: str, choice: Choice) -> Point:
        """What a choice comes to: on the model, or by what was added up where that is not run."""
        if choice not in self.points:
            if self._verify:
                lost, figures = self._verify(choice)
            else:
                lost, figures = sum(x[o] for x, o in zip(next(iter(self.ways.values())), choice, strict=True)), {}
            self.points[choice] = Point(how, choice, self.bytes(choice), lost, figures)
        return self.points[choice]

    def within(self, room: float) -> Point | None:
        """The best that was found within so many bytes."""
        points = [self.verified(how, choice) for how, choice in self.finalists(room)]
        return min(points, key=lambda p: (p.lost, p.bytes), default=None)

    def smallest_with(self, good: Callable[[Point], bool], room: float = math.inf) -> Point | None:
        """The smallest that is good enough: by halving along each way's path, of which only what is smaller than the best so far is looked at."""
        best: Point | None = None
        for how, losses in self.ways.items():
            along = path(self.sizes, losses)
            sizes = running(self.sizes, along)
            low, high = 0, bisect_right(sizes, room) - 1
            while best is not None and high >= 0 and self.fixed + sizes[high] >= best.bytes:
                high -= 1

            def at(n: int, how: str = how, along: Path = along) -> Point:
                return self.verified(f"chosen by {how}", tuple(along[n]))

            if high < 0 or not good(at(high)):
                continue
            while low < high:
                middle = (low + high) // 2
                if good(at(middle)):
                    high = middle
                else:
                    low = middle + 1
            best = at(high)
        return best


def _means(a: list[list[float]], b: list[list[float]]) -> list[list[float]]:
    """Geometric means of two tables of losses."""
    return [[math.sqrt(max(x, 0.0) * max(y, 0.0)) for x, y in zip(p, q, strict=True)] for p, q in zip(a, b, strict=True)]


def front(points: list[Point]) -> list[Point]:
    """Those that none beats in both, by bytes."""
    out: list[Point] = []
    for p in sorted(points, key=lambda p: (p.bytes, p.lost)):
        if not out or p.lost < out[-1].lost:
            out.append(p)
    return out
