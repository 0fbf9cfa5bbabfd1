"""The images that are to have one codec and one setting, one after another: those of a large set are decoded again each time, so that memory is bounded whatever their number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from app.steps.image import Target
from worker.images.judging import Judge
from worker.images.picture import Picture

MEMORY = 256 << 20
"""Bytes of pictures, and of what their judges have computed, that are held."""
_JUDGED, _SEEN = 18, 48
"""Bytes that are held for each value of a picture: itself, and of the windows at all scales values, means and variances in float32; as much again for SSIMULACRA 2, whose planes are always three."""


@dataclass(frozen=True)
class Sitter:
    """One image of a gallery, without its pixels.

    Args:
        outline: what codecs are asked about: its pixels are one zero, as often as it has some.
        again: opens it.
    """

    outline: Picture
    again: Callable[[], Picture]


class Gallery:
    """Args:
    target: what judges look for.
    memory: of held pictures; one is in memory anyway while it is looked at.
    """

    def __init__(self, target: Target, memory: int = MEMORY):
        self._target, self._memory, self._sitters, self._held = target, memory, [], {}

    @classmethod
    def of(cls, pictures: list[Picture], target: Target) -> Gallery:
        """Of pictures that are in memory anyway."""
        made = cls(target, 1 << 62)
        for picture in pictures:
            made.add(picture, lambda picture=picture: picture)
        return made

    def add(self, picture: Picture, again: Callable[[], Picture]) -> None:
        """Args:
        picture: with its pixels.
        again: gives it once more.
        """
        outline = Picture(picture.path, b"", picture.form, picture.width, picture.height, np.broadcast_to(np.uint8(0), picture.pixels.shape), icc=picture.icc)
        size = picture.pixels.size * (_JUDGED + (_SEEN if self._target.ssimulacra2 is not None else 0)) + len(picture.data)
        if size <= self._memory:
            self._memory -= size
            self._held[len(self._sitters)] = (picture, Judge(picture, self._target))
        self._sitters.append(Sitter(outline, again))

    def __len__(self) -> int:
        return len(self._sitters)

    def __iter__(self) -> Iterator[tuple[Picture, Judge]]:
        for i, sitter in enumerate(self._sitters):
            if i in self._held:
                yield self._held[i]
            else:
                picture = sitter.again()
                yield picture, Judge(picture, self._target)
                del picture

    @property
    def outlines(self) -> list[Picture]:
        return [s.outline for s in self._sitters]

    @property
    def pixels(self) -> int:
        return sum(s.outline.width * s.outline.height for s in self._sitters)
