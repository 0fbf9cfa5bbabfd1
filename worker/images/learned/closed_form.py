"""What of a codec needs no gradients: the transform, and how coarse each coefficient is, chosen by bits and error on the training part.

All pairs of a transform (the DCT; the KLT of the set) and a way to spread the quantizer's steps (all alike, or coarser for fine structure and colour) are tried; of each the quality at
which bits a pixel + lambda * mean squared error is smallest, of real streams; the best of all stays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np

from worker.images.learned.codec import decode, encode
from worker.images.learned.model import Model
from worker.images.transform.basis import Basis, dct, klt, moments_of

SPREADS = (0.0, 0.5, 1.0)
_FIRST, _STEP = 50, 12
SEEN = 1 << 18
"""Pixels that are tried on, at most: the middle of each image."""


def cost(images: list[np.ndarray], model: Model, quality: int, weight: float) -> tuple[float, float]:
    """(bits a pixel + weight * mean squared error in levels of 255, bits a pixel)."""
    bits = error = pixels = 0
    for image in images:
        data = encode(image, quality, model)
        bits += 8 * len(data)
        error += np.square(decode(data, model).astype(np.float64) - image).mean() * image.shape[0] * image.shape[1]
        pixels += image.shape[0] * image.shape[1]
    return (bits + weight * error) / pixels, bits / pixels


def fitted(images: list[np.ndarray], weight: float, tick: Callable[[], None] = lambda: None) -> tuple[Model, list[dict]]:
    """The best transform, without a network, and what was tried.

    Args:
        images: [H, W, C] uint8, all of the same C, 1 or 3.
        weight: lambda.
    """
    channels = images[0].shape[2]
    each = [moments_of(image) for image in images]
    bases = {"dct": dct(channels), "klt": klt(sum(m for m, _ in each), sum(n for _, n in each))}
    some = [_middle(image, SEEN // len(images)) for image in images]
    best, tried = None, []
    for (name, basis), spread in product(bases.items(), SPREADS):
        model = Model(_spread(basis, spread), name == "klt", _FIRST)
        found = _quality(some, model, weight, tick)
        tried.append({"transform": name, "spread": spread, "quality": found[1], "cost": round(found[0], 5), "bpp": round(found[2], 4)})
        if best is None or found[0] < best[0]:
            best = (found[0], replace(model, quality=found[1]))
    return best[1], tried


def _spread(basis: Basis, spread: float) -> Basis:
    return replace(basis, coarse=np.clip(np.rint(16 * (basis.coarse / 16) ** spread), 1, 255).astype(np.int64))


def _middle(image: np.ndarray, pixels: int) -> np.ndarray:
    """A part of so many pixels, about."""
    h, w = image.shape[:2]
    share = min(1.0, max(pixels, 64 * 64) / (h * w)) ** 0.5
    rows, columns = max(1, int(h * share)), max(1, int(w * share))
    top, left = (h - rows) // 2 // 8 * 8, (w - columns) // 2 // 8 * 8
    return image[top : top + rows, left : left + columns]


def _quality(images: list[np.ndarray], model: Model, weight: float, tick: Callable[[], None]) -> tuple[float, int, float]:
    """(cost, quality, bits a pixel): downhill, by ever smaller steps."""
    known: dict[int, tuple[float, float]] = {}

    def at(quality: int) -> float:
        if quality not in known:
            known[quality] = cost(images, model, quality, weight)
            tick()
        return known[quality][0]

    now, step = _FIRST, _STEP
    while step:
        best = min((q for q in (now, now - step, now + step) if 1 <= q <= 100), key=at)
        now, step = best, step if best != now else step // 2 if step > 3 else 0
    return known[now][0], now, known[now][1]
