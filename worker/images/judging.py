"""How near a decoded image is to its original, and what a target makes of that."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from app.steps.image import Target
from worker.images.picture import Picture
from worker.kernels.similarity import MsSsim, psnr
from worker.kernels.ssimulacra2 import Ssimulacra2


@dataclass(frozen=True)
class Figures:
    """Of one image, or the mean of several: `ms_ssim`, `psnr` (dB, infinite where nothing is lost) and, where it is asked for, `ssimulacra2`."""

    ms_ssim: float
    psnr: float
    ssimulacra2: float | None = None

    @classmethod
    def mean(cls, each: list[Figures]) -> Figures:
        """Of equal images 100 dB counts."""
        seen = None if each[0].ssimulacra2 is None else sum(f.ssimulacra2 for f in each) / len(each)
        return cls(sum(f.ms_ssim for f in each) / len(each), sum(min(f.psnr, 100.0) for f in each) / len(each), seen)

    def told(self) -> dict:
        """For a report."""
        out = {"ms_ssim": self.ms_ssim, "psnr": round(min(self.psnr, 999.0), 3)}
        return out if self.ssimulacra2 is None else out | {"ssimulacra2": round(self.ssimulacra2, 3)}


class Judge:
    """Holds decoded images against one original. Where there is alpha, colours count as far as they show, and alpha as one channel more.

    Args:
        target: what is asked for; SSIMULACRA 2 takes three times as long as the rest, so it is computed for a target of it alone.
    """

    def __init__(self, picture: Picture, target: Target):
        self.reference = _planes(picture.pixels)
        self.similarity = MsSsim(self.reference)
        self.seen = Ssimulacra2(_channels(picture.pixels)) if target.ssimulacra2 is not None else None

    def __call__(self, pixels: np.ndarray) -> Figures:
        """Args: pixels: [H, W, C] uint8, of the original's shape."""
        planes = _planes(pixels)
        return Figures(self.similarity(planes), psnr(self.reference, planes), self.seen(_channels(pixels)) if self.seen else None)


def _channels(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def _planes(pixels: np.ndarray) -> torch.Tensor:
    """[C, H, W]: uint8, or float32 where alpha has dimmed the colours."""
    planes = _channels(pixels)
    if planes.shape[0] != 4:
        return planes
    alpha = planes[3:].float()
    return torch.cat([planes[:3] * (alpha / 255), alpha])


def score(target: Target, figures: Figures, nbytes: int) -> float:
    """Where a try stands on the scale on which a codec's quality is about a straight line: over `aim` it is good enough, or too large."""
    if target.name == "ms_ssim":
        return -math.log(max(1 - figures.ms_ssim, 1e-9))
    if target.name == "ssimulacra2":
        return figures.ssimulacra2
    return min(figures.psnr, 100.0) if target.name == "psnr" else math.log(nbytes)


def aim(target: Target, pixels: int) -> float:
    """Args: pixels: of all images together."""
    if target.name == "ms_ssim":
        return -math.log(1 - target.value)
    return math.log(limit(target, pixels)) if target.of_size else target.value


def limit(target: Target, pixels: int) -> int:
    """Bytes that a target of size allows."""
    return max(1, int(target.value if target.name == "max_bytes" else target.value * pixels / 8))


def meets(target: Target, figures: Figures, nbytes: int, pixels: int) -> bool:
    if target.of_size:
        return nbytes <= limit(target, pixels)
    return getattr(figures, target.name) >= target.value
