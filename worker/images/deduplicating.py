"""Which images are like an earlier one: equal in every pixel, or by their perceptual hashes.

The hash is of the picture in grey, brought to 32 x 32: the signs of its 64 lowest cosine coefficients about their median (Zauner 2010, "Implementation and benchmarking of perceptual image
hash functions"). It stays where an image is scaled, coded again or made a little brighter, and changes where it is turned, mirrored or cut. Flat pictures have no structure to tell them
apart by, so those that are alike must be so in their mean colours too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from app.limits import shown
from worker.images.learned.held_out import digest
from worker.images.picture import open_picture

SIDE, BITS = 32, 8
COLOURS = 16
"""Levels of 255 by which the mean colours of near images may differ."""
LISTED = 10_000
_COSINES = np.cos(np.pi * (2 * np.arange(SIDE)[None] + 1) * np.arange(BITS)[:, None] / (2 * SIDE))


@dataclass(frozen=True)
class Like:
    """An image that is dropped. `bits`: how many of 64 differ from those of `first`; None where it is equal."""

    path: str
    first: str
    bits: int | None

    @property
    def reason(self) -> str:
        return f"its pixels are those of {shown(self.first)}" if self.bits is None else f"{self.bits} of 64 bits of its hash differ from those of {shown(self.first)}"


def likes(inputs: dict[str, Path], near: int | None, tick: Callable[[], None]) -> list[Like]:
    """Those that are like an earlier one that is kept, in their order; the nearest is told.

    Args:
        near: bits that may differ; None: only equal images are alike.

    Raises:
        InputRefused: see `open_picture`.
    """
    first: dict[str, str] = {}
    paths, hashes, colours, out = [], np.empty(len(inputs), np.uint64), np.empty((len(inputs), 4)), []
    for path, source in inputs.items():
        data = source.read_bytes()
        picture = open_picture(path, data)
        tick()
        if picture.pixels is None:  # what is not decoded is alike where its file is
            equal = "file " + digest(np.frombuffer(data, np.uint8).reshape(1, 1, -1))
        else:
            equal = digest(picture.pixels)
        if equal in first:
            out.append(Like(path, first[equal], None))
            continue
        first[equal] = path
        if near is None or picture.pixels is None:
            continue
        found, colour, n = perceptual(picture.pixels), _colour(picture.pixels), len(paths)
        apart = np.where(np.abs(colours[:n] - colour).max(1) <= COLOURS, np.bitwise_count(hashes[:n] ^ found), 65) if n else np.empty(0, int)
        if n and apart.min() <= near:
            out.append(Like(path, paths[int(apart.argmin())], int(apart.min())))
            continue
        hashes[n], colours[n] = found, colour
        paths.append(path)
    return out


def told(found: list[Like], near: int | None) -> dict:
    """For the report."""
    return {"near": near, "dropped": len(found), "duplicates": [{"name": f.path, "like": f.first, "bits": f.bits} for f in found[:LISTED]]}


def perceptual(pixels: np.ndarray) -> np.uint64:
    """Args: pixels: [H, W, C] uint8."""
    grey = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] < 3 else np.ascontiguousarray(pixels[:, :, :3])).convert("L")
    small = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX), np.float64)
    found = np.rint((_COSINES @ small @ _COSINES.T).reshape(-1))
    found[0] = 0  # the mean
    return np.packbits(found > np.median(found[1:])).view(">u8")[0].astype(np.uint64)


def _colour(pixels: np.ndarray) -> np.ndarray:
    """[4]: mean red, green, blue and alpha."""
    mean = pixels.mean((0, 1))
    return np.array([*mean[:3], 255 if len(mean) == 3 else mean[3]]) if len(mean) > 2 else np.array([mean[0]] * 3 + [255])
