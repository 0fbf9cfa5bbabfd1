"""Images that are none of the samples': theirs, moved a little. What is seen stays the same, and so does its class (Simard et al., 2003, "Best Practices for
Convolutional Neural Networks Applied to Visual Document Analysis"); what the original says of it, it can be asked.

An input is taken for images by its numbers: neighbours are alike, along rows and along columns. [N, C, H, W] and [N, H, W] say what H and W are; of [N, D],
rows of pixels one after another, the width is the distance at which values are alike again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from worker.samples.data import Batch, Data

if TYPE_CHECKING:
    from worker.runnable.runnable import Runnable

MOVED = 0.07
"""Of the height and of the width, at most, and a pixel at least."""
_ALIKE, _PEAK = 0.5, 0.1  # correlation of neighbours, and how far it stands out at the width, of images that come as rows
_SMALLEST, _LOOKED_AT = 8, 256  # pixels of a side; samples by which it is judged


@dataclass(frozen=True)
class Images:
    """Args:
    sizes: (height, width) by input name.
    keeps_labels: whether labels hold of what is moved: classes do, numbers may say where something is.
    """

    sizes: dict[str, tuple[int, int]]
    keeps_labels: bool

    @classmethod
    def of(cls, runnable: Runnable, data: Data) -> Images | None:
        """None where no input is one of images."""
        if data.tokens or "input_ids" in data.arrays:
            return None
        found = {name: size for name, array in data.arrays.items() if (size := raster(array)) is not None}
        return cls(found, runnable.task == "classifier") if found else None

    @property
    def says(self) -> str:
        return "every other sample is moved: " + ", ".join(f"{name} holds images of {height} x {width}" for name, (height, width) in self.sizes.items())

    def __call__(self, batch: Batch, rows: list[int], generator: torch.Generator) -> Batch:
        """`rows` of the batch moved by whole pixels, each by a distance of its own, the same part of each input; what comes in from outside is as the edge.
        What is drawn depends on the generator and on how many there are alone, not on the device.

        Returns:
            a new batch; the position of a sample that is none of the data's is -1.
        """
        by = 2 * torch.rand(2, len(rows), 1, generator=generator) - 1
        inputs = dict(batch.inputs)
        for name, (height, width) in self.sizes.items():
            x = inputs[name].clone()
            images = x.reshape(len(x), -1, height, width)[rows]
            down, right = (_moved(part, size).to(x.device) for part, size in zip(by, (height, width), strict=True))
            each = torch.arange(len(rows), device=x.device)[:, None, None]
            x[rows] = images.permute(0, 2, 3, 1)[each, down[:, :, None], right[:, None]].permute(0, 3, 1, 2).reshape(-1, *x.shape[1:])
            inputs[name] = x
        own = set(rows)
        positions = tuple(-1 if row in own else p for row, p in enumerate(batch.positions))
        return replace(batch, inputs=inputs, labels=batch.labels if self.keeps_labels else None, positions=positions)


def _moved(part: torch.Tensor, size: int) -> torch.Tensor:
    """Which of `size` pixels each one is after a move by a part [n, 1], -1 to 1, of what is allowed, every distance as likely: int64 [n, size]."""
    most = max(1, round(MOVED * size))
    by = ((part + 1) / 2 * (2 * most + 1)).long().clamp_max_(2 * most) - most
    return (torch.arange(size) + by).clamp_(0, size - 1)


def raster(array: np.ndarray) -> tuple[int, int] | None:
    """Height and width of what are images, [N, C, H, W], [N, H, W] or [N, D]; None where samples are something else."""
    if array.dtype.kind != "f" or array.ndim not in (2, 3, 4):
        return None
    x = np.asarray(array[:: max(1, len(array) // _LOOKED_AT)][:_LOOKED_AT], dtype=np.float64)
    x = np.nan_to_num(x - x.mean(0))
    if array.ndim > 2:
        height, width = array.shape[-2:]
        small = min(height, width) < _SMALLEST
        return None if small or _alike(x[..., :-1], x[..., 1:]) < _ALIKE or _alike(x[..., :-1, :], x[..., 1:, :]) < _ALIKE else (height, width)
    lags = {w: _alike(x[:, :-w], x[:, w:]) for w in _widths(x.shape[1])}
    if not lags or _alike(x[:, :-1], x[:, 1:]) < _ALIKE:
        return None
    width = max(lags, key=lags.get)
    aside = max(_alike(x[:, :-w], x[:, w:]) for w in (width - width // 4, width + width // 4))
    parts = max(_alike(x[:, :-w], x[:, w:]) for w in (width // 2, width // 3))  # of several rows: the true width is none of those that are tried
    return (x.shape[1] // width, width) if lags[width] >= max(_ALIKE, aside + _PEAK, parts) else None


def _widths(count: int) -> list[int]:
    """Of images of so many pixels, at most twice as wide as high, or as high as wide."""
    return [w for w in range(_SMALLEST, math.isqrt(2 * count) + 1) if count % w == 0 and count // w >= _SMALLEST and count <= 2 * w * w]


def _alike(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of values, each less its mean."""
    size = math.sqrt(float((a * a).sum()) * float((b * b).sum()))
    return float((a * b).sum()) / size if size > 0 else 0.0
