"""What decodes, in integers: the twin of the network's two syntheses, the same on every machine.

    hyper_synthesis   side information -> means and levels of latents:  doubling, doubling, layer
    synthesis         latents and quality -> pixels:  three times a doubling and a block, then a doubling

A doubling is a layer of four times the outputs, moved to twice the sides. Values are integers in float64 whose sums stay below 2^53 (`worker.kernels.integer_convolution`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worker.images.hyperprior.fixed import FRACTION, FURTHEST, LEAK, LEVELS, LOWEST, MIDDLE, MOST, OCTAVE, ONE, PIXEL, STEPS
from worker.kernels.integer_convolution import convolved

FURTHEST_SIDE = 1 << 10
"""Bound of a number of side information."""
SEES = 4
"""Latents that a pixel sees, in each direction: 1 at 1/16 of the resolution, 3 layers at 1/8, 3 at 1/4, 3 at 1/2."""
STRIP = 1 << 12
"""Latents that are decoded at once, about."""


@dataclass(frozen=True)
class Layer:
    """Args:
    weight: [O, I, 3, 3] int8. bias: [O] int32.
    shift: [O] int64: sums are divided by 2^shift.
    """

    weight: np.ndarray
    bias: np.ndarray
    shift: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return convolved(x, self.weight, self.bias, self.shift)


@dataclass(frozen=True)
class Decoder:
    """Args:
    hyper: three layers.
    synthesis: ten: (doubling, two of a block) three times, and the last doubling.
    """

    hyper: tuple[Layer, ...]
    synthesis: tuple[Layer, ...]

    def expect(self, z: np.ndarray, quality: int) -> tuple[np.ndarray, np.ndarray]:
        """[Z, h, w] whole numbers -> [M, 4h, 4w] means (integers of 1 / ONE), and levels, 0 .. LEVELS - 1, of what is then coded in steps of the quality."""
        x = np.clip(z, -FURTHEST_SIDE, FURTHEST_SIDE).astype(np.float64) * ONE
        for layer in self.hyper[:2]:
            x = _bent(_doubled(layer(x)))
        mean, spread = np.split(self.hyper[2](x), 2)
        octaves = spread.astype(np.int64) + (ONE // OCTAVE) * (quality - MIDDLE)  # of the spread over the step: STEPS levels to each
        return mean, np.clip((STEPS * octaves + ONE // 2 >> FRACTION) - LOWEST, 0, LEVELS - 1)

    def pixels(self, y: np.ndarray, quality: int) -> np.ndarray:
        """[M, h, w] latents, integers of 1 / ONE -> [16h, 16w, C] uint8. In strips, which overlap by more than a pixel sees: the same as at once."""
        rows, out = max(1, STRIP // y.shape[2]), []
        for top in range(0, y.shape[1], rows):
            first = max(0, top - SEES)
            strip = self._strip(y[:, first : top + rows + SEES], quality)
            out.append(strip[16 * (top - first) :][: 16 * rows])
        return np.concatenate(out)[: 16 * y.shape[1]]

    def _strip(self, y: np.ndarray, quality: int) -> np.ndarray:
        plane = np.full((1, *y.shape[1:]), float((ONE // OCTAVE) * (quality - MIDDLE)))
        x = np.concatenate([np.clip(y, -FURTHEST, FURTHEST), plane])
        for i in range(0, 9, 3):
            x = _bent(_doubled(self.synthesis[i](x)))
            x = _bent(x + self.synthesis[i + 2](_bent(self.synthesis[i + 1](x))))
        x = _doubled(self.synthesis[9](x))
        levels = np.floor((x * PIXEL + ONE // 2) / ONE) + 128
        return np.ascontiguousarray(np.clip(levels, 0, 255).astype(np.uint8).transpose(1, 2, 0))


def _bent(x: np.ndarray) -> np.ndarray:
    return np.clip(np.where(x < 0, np.floor(x / LEAK), x), -MOST, MOST)


def _doubled(x: np.ndarray) -> np.ndarray:
    """[4C, h, w] -> [C, 2h, 2w], as torch's pixel_shuffle."""
    c, h, w = x.shape[0] // 4, *x.shape[1:]
    return x.reshape(c, 2, 2, h, w).transpose(0, 3, 1, 4, 2).reshape(c, 2 * h, 2 * w)
