"""What a variant of a codec is expected to give at qualities that were not tried, from its trials and from what the final speed changed for its sisters."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from app.steps.image import Target
from worker.images.judging import Figures, aim, score

QUALITY = Target(ms_ssim=0.5)  # by whose score images are compared where the target is one of size


@dataclass(frozen=True)
class Point:
    """One try: the logarithm of its bytes, and its score in quality."""

    size: float
    seen: float

    @classmethod
    def of(cls, target: Target, figures: Figures, nbytes: int) -> Point:
        return cls(math.log(nbytes), score(QUALITY if target.of_size else target, figures, nbytes))

    def __sub__(self, other: Point) -> Point:
        return Point(self.size - other.size, self.seen - other.seen)

    def __add__(self, other: Point) -> Point:
        return Point(self.size + other.size, self.seen + other.seen)

    def __mul__(self, by: float) -> Point:
        return Point(self.size * by, self.seen * by)


NO_SHIFT = Point(0.0, 0.0)


def between(a: tuple[int, Point], b: tuple[int, Point], quality: int) -> Point:
    """On the straight line through two tries."""
    return a[1] + (b[1] - a[1]) * ((quality - a[0]) / (b[0] - a[0]))


def expected(points: dict[int, Point], qualities: Iterable[int], target: Target, pixels: int, shift: Point = NO_SHIFT) -> tuple[int, Point] | None:
    """The quality that should be the edge of the target at the final speed, and what it should give.

    Args:
        points: two trials or more, by quality.
        qualities: that may be chosen, ascending.
        shift: what the final speed changes.
    """
    wanted, good = aim(target, pixels), []
    for quality in qualities:
        a, b = sorted(sorted(points.items(), key=lambda p: abs(p[0] - quality))[:2])
        there = between(a, b, quality) + shift
        if (there.size <= wanted) if target.of_size else (there.seen >= wanted):
            good.append((quality, there))
    return (good[-1] if target.of_size else good[0]) if good else None
