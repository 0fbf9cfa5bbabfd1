"""The search for a codec and its setting.

    each variant of each codec: fast trials that close in on the quality which just meets the target (its score is about a straight line in quality)
    those that may still win:   at the final speed where the edge then should be, and its neighbours; what speed changed for one variant is expected of its sisters

Every try is a whole file that was decoded again, so any that meets the target may win: of a quality target the smallest, of a size target the best.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from app.steps.image import Target
from worker.images.codecs import CODECS, Codec, Variant
from worker.images.curve import NO_SHIFT, Point, between, expected
from worker.images.gallery import Gallery
from worker.images.judging import aim, score
from worker.images.tries import Tries, Try

TRIALS = 9
ORDER = ("avif", "webp", "jxl", "jpeg", "transform", "learned")
"""In which codecs are tried: the likely winner first, so that others are given up as soon as they cannot win."""
NEIGHBOURS = 4
LOSSLESS_GAIN = 2.5
"""How much smaller a file without loss may be at the final speed than at that of trials, at most."""
FAR = 8
SISTERS = 0.04, 0.12
"""How far behind (in logarithms of bytes) the best variant of a codec another may be expected: at the final speed, and by trials alone."""
_STEP = 16


class Search:
    """For the images of a gallery, usually one.

    Args:
        beside: whether files carry EXIF and XMP.
        codecs: by name; others than the standard ones where there is a learned transform.
        tick: called after every file; raises to end the search.
        folder: where the files of large tries lie.
    """

    def __init__(self, gallery: Gallery, target: Target, effort: str, beside: bool = False, tick: Callable[[], None] = lambda: None, codecs: dict = CODECS, folder: Path | None = None):
        self.gallery, self.target, self.effort, self.codecs = gallery, target, effort, codecs
        self.pixels = gallery.pixels
        self.aim = aim(target, self.pixels)
        self.tries = Tries(gallery, target, beside, tick, folder)
        self.skipped: dict[str, str] = {}
        self._shifts: dict[str, Point] = {}  # by codec

    @property
    def best(self) -> Try | None:
        return self.tries.best

    def run(self, candidates: list[str]) -> Try | None:
        """The best try that meets the target; None where none does."""
        found, outlines = [], self.gallery.outlines
        for name in sorted(candidates, key=ORDER.index):
            codec = self.codecs[name]
            if why := next((why for p in outlines if (why := codec.refuses(p))), None):
                self.skipped[name] = why
                continue
            first, slope, sizes = codec.first, None, []
            for variant in codec.variants_for(outlines[0], self.effort):
                if (near := self._trials(codec, variant, first, slope, min(sizes, default=None))) is not None:
                    first, slope = near.quality, self._slope(codec, variant)
                    found.append((codec, variant, near))
                    sizes.append(self._expected(codec, variant, near)[1].size)
        for codec, variant, near in sorted(found, key=self._rank):
            at, hope = self._expected(codec, variant, near)
            if codec.speed and self._may_win(codec, hope):
                self._finals(codec, variant, at)
        for name in sorted((n for n in candidates if n not in self.skipped and self.codecs[n].lossless), key=("jxl", "webp", "png").index):
            if not self._exact(self.codecs[name]):
                break
        return self.best

    def _exact(self, codec: Codec) -> bool:
        """Without loss, which meets every quality, and of drawings and text may be the smallest. False where it is so large that no other codec would be."""
        variant = Variant("lossless", codec.lossless)
        near = self.tries.make(codec, variant, codec.levels[1], None)
        if near.good if self.target.of_size else near.bytes < LOSSLESS_GAIN * self.best.bytes if self.best else True:
            self.tries.make(codec, variant, codec.levels[1], self.effort)
        return self.target.of_size or near.bytes < FAR * self.best.bytes

    def _rank(self, one: tuple[Codec, Variant, Try]) -> float:
        codec, variant, near = one
        point = self._expected(codec, variant, near)[1]
        return -point.seen if self.target.of_size else point.size - math.log(codec.gain)

    def _expected(self, codec: Codec, variant: Variant, near: Try) -> tuple[int, Point]:
        """The quality at the edge of the target, and what it should give, at the final speed where it is known what that changes."""
        points = self.tries.points(codec, variant)
        shift = self._shifts.get(codec.name, NO_SHIFT)
        found = expected(points, range(codec.levels[0], codec.levels[1] + 1), self.target, self.pixels, shift) if len(points) > 1 else None
        return found or (near.quality, points[near.quality] + shift)

    def _slope(self, codec: Codec, variant: Variant) -> float | None:
        """How much the score gains with each quality near the edge."""
        points = sorted(self.tries.points(codec, variant).items(), key=lambda p: abs((p[1].size if self.target.of_size else p[1].seen) - self.aim))[:2]
        if len(points) < 2:
            return None
        (a, x), (b, y) = points
        return (y.size - x.size if self.target.of_size else y.seen - x.seen) / (b - a) or None

    def _may_win(self, codec: Codec, hope: Point) -> bool:
        """Whether it could become the best. Where the codec's gain by speed is not known yet, it is taken for large; what a file loses goes about with the square of its size."""
        known = codec.name in self._shifts
        gain = SISTERS[0] if known else math.log(codec.gain)
        if self.target.of_size:
            return hope.seen + 2 * gain >= -math.log(max(1 - self.best.figures.ms_ssim, 1e-9))
        return hope.size < gain + math.log(self.best.bytes)

    def _trials(self, codec: Codec, variant: Variant, first: int, slope: float | None, sister: float | None) -> Try | None:
        """The trial at the edge of the target: the lowest quality that meets it, or the highest whose size does. None where there is none, or it cannot win.

        Args:
            slope: of the score, as a sister had it.
            sister: logarithm of the bytes that a sister needs.
        """
        gap = 3 if codec.speed else 1  # the edge of a trial is not that of a final file
        least, most = codec.levels
        under, over = least - 1, most + 1  # in score
        made: dict[int, Try] = {}
        quality = first
        for _ in range(TRIALS):
            made[quality] = self.tries.make(codec, variant, quality, None)
            if self._score(made[quality]) < self.aim:
                under = quality
            else:
                over = quality
            if self._behind(codec, made[quality]):
                return None
            if over - under <= gap or over == least or under == most:
                break
            points = self.tries.points(codec, variant)
            if sister is not None and not self.target.of_size and under in points and over in points and self._expected(codec, variant, made[over])[1].size > sister + SISTERS[1]:
                return None
            quality = min(max(self._next(made, under, over, slope), max(under + 1, least)), min(over - 1, most))
        good = [t for t in made.values() if t.good]
        return (max if self.target.of_size else min)(good, key=lambda t: t.quality, default=None)

    def _behind(self, codec: Codec, one: Try) -> bool:
        """Whether a try misses the quality and yet has more bytes than the codec's files at the final speed could make up for."""
        return not self.target.of_size and not one.good and self.best is not None and one.bytes > codec.gain * self.best.bytes

    def _next(self, made: dict[int, Try], under: int, over: int, slope: float | None) -> int:
        """Where a straight line through the two tries nearest to the edge meets it; after one try, by the slope of a sister."""
        near = sorted(made, key=lambda q: abs(self._score(made[q]) - self.aim))[:2]
        if under in made and over in made:
            near = [under, over]
        if len(near) == 1:
            guess = (self.aim - self._score(made[near[0]])) / slope if slope else math.inf
            if 0 < abs(guess) <= 2 * _STEP:
                return near[0] + math.floor(guess) + 2 * (guess > 0)
            return near[0] + (_STEP if near[0] == under else -_STEP)
        (a, b), (x, y) = near, (self._score(made[near[0]]), self._score(made[near[1]]))
        if x == y:
            return (max(a, b) + 3) if max(a, b) == under else (min(a, b) - 3) if min(a, b) == over else (under + over) // 2
        exact = a + (self.aim - x) * (b - a) / (y - x)
        if under in made and over in made and over - under > 8:  # a line may be wrong about a wide gap: not too near to its ends
            exact = min(max(exact, under + 0.1 * (over - under)), over - 0.1 * (over - under))
        return round(max(-1000.0, min(1000.0, exact)))

    def _finals(self, codec: Codec, variant: Variant, quality: int) -> None:
        """At the final speed: down while the target is met, or up until it is."""
        step = 1 if self.target.of_size else -1
        done = self.tries.make(codec, variant, quality, self.effort)
        points = sorted(self.tries.points(codec, variant).items(), key=lambda p: abs(p[0] - quality))[:2]
        there = between(*points, quality) if len(points) > 1 else points[0][1]
        self._shifts.setdefault(codec.name, Point.of(self.target, done.figures, done.bytes) - there)
        towards = step if done.good else -step
        for n in range(1, NEIGHBOURS + 1):
            at = quality + n * towards
            if not codec.levels[0] <= at <= codec.levels[1]:
                return
            done = self.tries.make(codec, variant, at, self.effort)
            if done.good != (towards == step):
                return

    def _score(self, one: Try) -> float:
        return score(self.target, one.figures, one.bytes)
