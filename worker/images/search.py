"""The search for a codec and its setting.

    each variant of each codec: fast trials that close in on the quality which just meets the target (its score is about a straight line in quality)
    those that may still win:   the same at the final speed, and its neighbours, since speed moves quality a little

Every try is a whole file that was decoded again, so any that meets the target may win: of a quality target the smallest, of a size target the best.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from app.steps.image import Target
from worker.images.codecs import CODECS, Codec, Variant
from worker.images.judging import Figures, Judge, aim, meets, score
from worker.images.picture import Picture

TRIALS = 9
ORDER = ("avif", "webp", "jxl", "jpeg", "transform")
"""In which codecs are tried: the likely winner first, so that others are given up as soon as they cannot win."""
NEIGHBOURS = 4
LOSSLESS_GAIN = 2.5
"""How much smaller a file without loss may be at the final speed than at that of trials, at most."""
_STEP = 16


@dataclass(frozen=True)
class Try:
    """One setting, what it gave, and how long encoding took. `data`: the files, one for each image."""

    codec: str
    variant: str
    quality: int
    effort: str | None
    bytes: int
    figures: Figures
    seconds: float
    good: bool
    data: tuple[bytes, ...]

    def told(self) -> dict:
        out = {k: v for k, v in asdict(self).items() if k not in ("figures", "data", "good", "effort")}
        return out | {"ms_ssim": self.figures.ms_ssim, "psnr": round(min(self.figures.psnr, 999.0), 3), "final": self.effort is not None, "meets": self.good}


class Search:
    """The images that are to have one codec and one setting: usually one image.

    Args:
        beside: whether files carry EXIF and XMP.
        codecs: by name; others than the standard ones where there is a learned transform.
        tick: called after every try; raises to end the search.
    """

    def __init__(self, pictures: list[Picture], target: Target, effort: str, beside: bool = False, tick: Callable[[], None] = lambda: None, codecs: dict = CODECS):
        self.codecs = codecs
        self.pictures, self.target, self.effort, self.beside, self.tick = pictures, target, effort, beside, tick
        self.judges = [Judge(p) for p in pictures]
        self.pixels = sum(p.width * p.height for p in pictures)
        self.aim = aim(target, self.pixels)
        self.tries: list[Try] = []
        self.skipped: dict[str, str] = {}
        self.best: Try | None = None

    def run(self, candidates: list[str]) -> Try | None:
        """The best try that meets the target; None where none does."""
        found = []
        for name in sorted(candidates, key=ORDER.index):
            codec = self.codecs[name]
            if why := next((why for p in self.pictures if (why := codec.refuses(p))), None):
                self.skipped[name] = why
                continue
            first = codec.first
            for variant in codec.variants_for(self.pictures[0], self.effort):
                if (near := self._trials(codec, variant, first)) is not None:
                    first = near.quality
                    found.append((codec, variant, near))
        for codec, variant, near in sorted(found, key=lambda f: f[2].bytes / f[0].gain if not self.target.of_size else -f[2].figures.ms_ssim):
            if codec.speed and self._may_win(codec, near):
                self._finals(codec, variant, near.quality)
        for name in (n for n in candidates if n not in self.skipped and self.codecs[n].lossless):
            self._exact(self.codecs[name])
        return self.best

    def _exact(self, codec: Codec) -> None:
        """Without loss, which meets every quality, and of drawings and text may be the smallest."""
        variant = Variant("lossless", codec.lossless)
        near = self._try(codec, variant, codec.levels[1], None)
        if near.good if self.target.of_size else near.bytes < LOSSLESS_GAIN * self.best.bytes if self.best else True:
            self._try(codec, variant, codec.levels[1], self.effort)

    def _may_win(self, codec: Codec, near: Try) -> bool:
        """Whether what the final speed gains could make it the best: what a file loses goes about with the square of its size."""
        if self.target.of_size:
            return 1 - near.figures.ms_ssim <= codec.gain**2 * (1 - self.best.figures.ms_ssim)
        return near.bytes < codec.gain * self.best.bytes

    def _trials(self, codec: Codec, variant: Variant, first: int) -> Try | None:
        """The trial at the edge of the target: the lowest quality that meets it, or the highest whose size does."""
        least, most = codec.levels
        under, over = least - 1, most + 1  # in score
        made: dict[int, Try] = {}
        quality = first
        for _ in range(TRIALS):
            made[quality] = self._try(codec, variant, quality, None)
            if self._score(made[quality]) < self.aim:
                under = quality
            else:
                over = quality
            if self._behind(codec, made[quality]):
                return None
            if over - under <= 1 or over == least or under == most:
                break
            quality = min(max(self._next(made, under, over), max(under + 1, least)), min(over - 1, most))
        good = [t for t in made.values() if t.good]
        return (max if self.target.of_size else min)(good, key=lambda t: t.quality, default=None)

    def _behind(self, codec: Codec, one: Try) -> bool:
        """Whether a try misses the quality and yet has more bytes than the codec's files at the final speed could make up for."""
        return not self.target.of_size and not one.good and self.best is not None and one.bytes > codec.gain * self.best.bytes

    def _next(self, made: dict[int, Try], under: int, over: int) -> int:
        """Where a straight line through the two tries nearest to the edge meets it."""
        near = sorted(made, key=lambda q: abs(self._score(made[q]) - self.aim))[:2]
        if under in made and over in made:
            near = [under, over]
        if len(near) == 1:
            return near[0] + (_STEP if near[0] == under else -_STEP)
        (a, b), (x, y) = near, (self._score(made[near[0]]), self._score(made[near[1]]))
        if x == y:
            return (max(a, b) + _STEP) if max(a, b) == under else (min(a, b) - _STEP) if min(a, b) == over else (under + over) // 2
        exact = a + (self.aim - x) * (b - a) / (y - x)
        if under in made and over in made and over - under > 8:  # a line may be wrong about a wide gap: not too near to its ends
            exact = min(max(exact, under + 0.1 * (over - under)), over - 0.1 * (over - under))
        return round(max(-1000.0, min(1000.0, exact)))

    def _finals(self, codec: Codec, variant: Variant, quality: int) -> None:
        """At the final speed: down while the target is met, or up until it is."""
        step = 1 if self.target.of_size else -1
        done = self._try(codec, variant, quality, self.effort)
        towards = step if done.good else -step
        for n in range(1, NEIGHBOURS + 1):
            at = quality + n * towards
            if not codec.levels[0] <= at <= codec.levels[1]:
                return
            done = self._try(codec, variant, at, self.effort)
            if done.good != (towards == step):
                return

    def _score(self, one: Try) -> float:
        return score(self.target, one.figures, one.bytes)

    def _try(self, codec: Codec, variant: Variant, quality: int, effort: str | None) -> Try:
        data, found, seconds = [], [], 0.0
        for picture, judge in zip(self.pictures, self.judges, strict=True):
            start = time.perf_counter()
            data.append(codec.encode(picture, quality, variant, effort, picture.beside if self.beside else None))
            seconds += time.perf_counter() - start
            found.append(judge(codec.decode(data[-1], picture.mode)))
            self.tick()
        figures = Figures(sum(f.ms_ssim for f in found) / len(found), sum(min(f.psnr, 100.0) for f in found) / len(found))
        nbytes = sum(map(len, data)) + codec.overhead(variant)
        good = meets(self.target, figures, nbytes, self.pixels)
        made = Try(codec.name, variant.name, quality, effort, nbytes, figures, round(seconds, 3), good, tuple(data))
        if good and self._better(made):
            self.best = made
        self.tries.append(replace(made, data=()))
        return self.tries[-1]

    def _better(self, made: Try) -> bool:
        if self.best is None:
            return True
        if self.target.of_size:
            return (made.figures.ms_ssim, -made.bytes) > (self.best.figures.ms_ssim, -self.best.bytes)
        return made.bytes < self.best.bytes
