"""One try after another: a setting of a codec, the whole files that it made, and what these decode to."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from app.steps.image import Target
from worker.images.curve import Point
from worker.images.gallery import Gallery
from worker.images.judging import Figures, meets

HELD = 32 << 20
"""Bytes of a try's files in memory; those of a larger one lie in a folder."""


class Files:
    """The files of a try, one for each image, in their order."""

    def __init__(self, folder: Path | None):
        self._file, self._sizes = tempfile.SpooledTemporaryFile(HELD, dir=folder), []

    def add(self, data: bytes) -> None:
        self._file.write(data)
        self._sizes.append(len(data))

    def __iter__(self) -> Iterator[bytes]:
        at = 0
        for size in self._sizes:
            self._file.seek(at)
            yield self._file.read(size)
            at += size


@dataclass(frozen=True)
class Try:
    """One setting, what it gave, and how long encoding took. `files`: of the best try; None where it is not."""

    codec: str
    variant: str
    quality: int
    effort: str | None
    bytes: int
    figures: Figures
    seconds: float
    good: bool
    files: Files | None = None

    def told(self) -> dict:
        out = {k: v for k, v in asdict(replace(self, files=None)).items() if k not in ("figures", "files", "good", "effort")}
        return out | self.figures.told() | {"final": self.effort is not None, "meets": self.good}


class Tries:
    """What was tried on a gallery, each setting once, and the best of it.

    Args:
        beside: whether files carry EXIF and XMP.
        tick: called after every file; raises to end the search.
        folder: where the files of large tries lie.
    """

    def __init__(self, gallery: Gallery, target: Target, beside: bool = False, tick: Callable[[], None] = lambda: None, folder: Path | None = None):
        self.gallery, self.target, self.beside, self.tick, self.folder = gallery, target, beside, tick, folder
        self.made: list[Try] = []
        self.best: Try | None = None
        self._known: dict[tuple, Try] = {}
        self._points: dict[tuple[str, str], dict[int, Point]] = {}

    def points(self, codec, variant) -> dict[int, Point]:
        """Of trials, by quality."""
        return self._points.setdefault((codec.name, variant.name), {})

    def make(self, codec, variant, quality: int, effort: str | None) -> Try:
        """Args: codec, variant: as in `worker.images.codecs`. effort: of a final file; None for a trial."""
        key = (codec.name, variant.name, codec.same(variant, quality), effort)
        if key in self._known:
            return self._known[key]
        files, found, nbytes, seconds = Files(self.folder), [], codec.overhead(variant), 0.0
        for picture, judge in self.gallery:
            start = time.perf_counter()
            data = codec.encode(picture, quality, variant, effort, picture.beside if self.beside else None)
            seconds += time.perf_counter() - start
            found.append(judge(codec.decode(data, picture.mode)))
            nbytes += len(data)
            files.add(data)
            self.tick()
        figures = Figures.mean(found)
        good = meets(self.target, figures, nbytes, self.gallery.pixels)
        one = Try(codec.name, variant.name, quality, effort, nbytes, figures, round(seconds, 3), good)
        if good and self._better(one):
            self.best = replace(one, files=files)
        self.made.append(one)
        self._known[key] = one
        if effort is None:
            self.points(codec, variant)[quality] = Point.of(self.target, figures, nbytes)
        return one

    def _better(self, one: Try) -> bool:
        if self.best is None:
            return True
        if self.target.of_size:
            return (one.figures.ms_ssim, -one.bytes) > (self.best.figures.ms_ssim, -self.best.bytes)
        return one.bytes < self.best.bytes
