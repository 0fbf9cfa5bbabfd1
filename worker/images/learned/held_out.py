"""Which part of a set a codec learns from, and which it is measured on.

Of several images a fifth, drawn by the seed, is held out; of a single one its right quarter. What was learned from is written into the codec's index by the digest of its pixels, so that
a test leaves it out of whatever set it is given.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from worker.images.picture import Picture

SHARE = 5


@dataclass(frozen=True)
class Part:
    """An image, or a part of it.

    Args:
        digest: of the whole image's pixels.
        columns: that were learned from, from the left.
    """

    path: str
    pixels: np.ndarray
    digest: str
    columns: int


def digest(pixels: np.ndarray) -> str:
    return hashlib.sha256(b"%d %d %d " % pixels.shape + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def split(pictures: list[Picture], seed: int) -> tuple[list[Part], list[Part]]:
    """(to learn from, held out). Equal images are on one side."""
    first: dict[str, Picture] = {}
    for picture in pictures:
        first.setdefault(digest(picture.pixels), picture)
    if len(first) == 1:
        (found, picture), = first.items()
        edge = picture.width * 3 // 4 // 8 * 8
        learned = [Part(picture.path, picture.pixels[:, : edge or picture.width], found, edge or picture.width)]
        return learned, [Part(picture.path, picture.pixels[:, edge:], found, edge)] if edge else []
    names = sorted(first)
    away = set(np.random.default_rng(seed).permutation(len(names))[: max(1, len(names) // SHARE)].tolist())
    parts = [(i in away, Part(first[n].path, first[n].pixels, n, 0 if i in away else first[n].width)) for i, n in enumerate(names)]
    return [p for held, p in parts if not held], [p for held, p in parts if held]


def unseen(pictures: list[Picture], learned: dict[str, int]) -> list[Part]:
    """What a codec has not learned from.

    Args:
        learned: digest -> columns.
    """
    out = []
    for picture in pictures:
        found = digest(picture.pixels)
        columns = learned.get(found, 0)
        if columns < picture.width:
            out.append(Part(picture.path, picture.pixels[:, columns:], found, columns))
    return out
