"""The network that a learned codec has behind its transform: it looks at decoded pixels, and tells what to add to them. Integers throughout, so every machine has the same pixels.

    [H, W, C] pixels less 128, in 64ths  ->  2 x 2 pixels to one place of 4C channels, and the quality as one channel more
    3 x 3 convolutions of int8 weights, int32 biases, a division by a power of two; between them values below 0 become 0, and those above MOST that
    the last one gives 4C channels: what is added to the pixels, in 64ths
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worker.kernels.integer_convolution import convolved

FRACTION = 6
MOST = (1 << 16) - 1
MIDDLE = 50
"""Of the quality, which becomes 0."""


@dataclass(frozen=True)
class Layer:
    """Args:
    weight: [O, I, 3, 3] int8.
    bias: [O] int32.
    shift: sums are divided by 2^shift.
    """

    weight: np.ndarray
    bias: np.ndarray
    shift: int


def inputs_of(channels: int) -> int:
    return 4 * channels + 1


def improved(layers: tuple[Layer, ...], pixels: np.ndarray, quality: int) -> np.ndarray:
    """[H, W, C] uint8 -> the same shape, with what the network adds."""
    if not layers:
        return pixels
    h, w, c = pixels.shape
    padded = np.pad(pixels, ((0, h % 2), (0, w % 2), (0, 0)), mode="edge").astype(np.float64) - 128
    x = padded.reshape((h + 1) // 2, 2, (w + 1) // 2, 2, c).transpose(4, 1, 3, 0, 2).reshape(4 * c, (h + 1) // 2, -1)
    x = np.concatenate([x, np.full((1, *x.shape[1:]), float(quality - MIDDLE))]) * (1 << FRACTION)
    for layer in layers[:-1]:
        x = np.clip(convolved(x, layer.weight, layer.bias, layer.shift), 0, MOST)
    last = layers[-1]
    added = convolved(x, last.weight, last.bias, last.shift)
    added = np.floor((added + (1 << FRACTION >> 1)) / (1 << FRACTION))
    whole = added.reshape(c, 2, 2, *added.shape[1:]).transpose(3, 1, 4, 2, 0).reshape(*padded.shape)
    return np.ascontiguousarray(np.clip(padded + 128 + whole, 0, 255).astype(np.uint8)[:h, :w])
