"""How alike two images look: PSNR and MS-SSIM, of images as numbers.

MS-SSIM is that of Wang, Simoncelli and Bovik, "Multiscale structural similarity for image quality assessment" (2003): an 11x11 Gaussian window of
sigma 1.5, K1 = 0.01, K2 = 0.03, five scales with the paper's exponents, contrast and structure at each of them and luminance at the last, halved by 2x2 means
in between. Windows lie wholly within the image; nothing is reflected or padded. Of colour images it is the mean over the channels (R, G, B), as those
who compare image codecs take it. An image whose shorter side is below 161 has no window at the fifth scale: it is judged at as many scales as it has (to 11 pixels
each), their exponents brought to a sum of 1; one of fewer than 11 pixels on a side by a window that is as large as the side. A negative mean of a scale counts
as 0.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from worker.kernels.windows import means

EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW, SIGMA = 11, 1.5
_KEPT = 1 << 24  # values of a reference whose moments are kept


def psnr(a: torch.Tensor, b: torch.Tensor, peak: float = 255.0) -> float:
    """Peak signal to noise ratio over all values, dB; infinite where they are equal.

    Args:
        a, b: [C, H, W], of any one dtype.
    """
    error = (a.double() - b.double()).square().mean().item()
    return 10 * math.log10(peak * peak / error) if error else math.inf


class MsSsim:
    """MS-SSIM against one reference, of which everything is computed once where it is not too large to keep. One channel after another, so that memory is bounded by one.

    Args:
        reference: [C, H, W], 0 to `peak`.
    """

    def __init__(self, reference: torch.Tensor, peak: float = 255.0):
        self.reference, self.peak = reference, peak
        self.c1, self.c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
        self.scales = scales(*reference.shape[1:])
        total = sum(EXPONENTS[: self.scales])
        self.exponents = [e / total for e in EXPONENTS[: self.scales]]
        self.known = [list(self._moments(channel)) for channel in reference] if reference.numel() <= _KEPT else None

    def __call__(self, image: torch.Tensor) -> float:
        """Of an image of the same shape: at most 1, which equal images have.

        Raises:
            ValueError: it has another shape.
        """
        if image.shape != self.reference.shape:
            raise ValueError(f"an image of shape {tuple(image.shape)} is held against one of {tuple(self.reference.shape)}")
        return sum(self._channel(c, channel) for c, channel in enumerate(image)) / len(image)

    def _moments(self, channel: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Values, means and variances at each scale."""
        x = channel.float()
        for scale in range(self.scales):
            x = F.avg_pool2d(x[None], 2)[0] if scale else x
            mean = filtered(x)
            yield x, mean, filtered(x * x) - mean * mean

    def _channel(self, c: int, channel: torch.Tensor) -> float:
        product, known = 1.0, self.known[c] if self.known else self._moments(self.reference[c])
        for scale, ((x, mean_x, var_x), (y, mean_y, var_y)) in enumerate(zip(known, self._moments(channel), strict=True)):
            both = filtered(x * y) - mean_x * mean_y
            structure = (2 * both + self.c2) / (var_x + var_y + self.c2)
            if scale == self.scales - 1:
                structure = structure * (2 * mean_x * mean_y + self.c1) / (mean_x * mean_x + mean_y * mean_y + self.c1)
            product *= max(structure.double().mean().item(), 0.0) ** self.exponents[scale]
        return product


def ms_ssim(a: torch.Tensor, b: torch.Tensor, peak: float = 255.0) -> float:
    """Of two images [C, H, W]; see above."""
    return MsSsim(a, peak)(b)


def scales(height: int, width: int) -> int:
    """At how many scales an image is judged: 5 where its shorter side has 161 pixels or more."""
    found, side = 1, min(height, width) // 2
    while found < len(EXPONENTS) and side >= WINDOW:
        found, side = found + 1, side // 2
    return found


def filtered(x: torch.Tensor) -> torch.Tensor:
    """Means under the Gaussian window at each place where it lies within the image.

    Args:
        x: [..., H, W] -> [..., H - 10, W - 10], or less off where a side is below 11.
    """
    down, across = (_gaussian(min(WINDOW, side)) for side in x.shape[-2:])
    return means(x, down, across)


@functools.cache
def _gaussian(size: int) -> tuple[float, ...]:
    at = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
    weights = torch.exp(-at * at / (2 * SIGMA**2))
    return tuple((weights / weights.sum()).tolist())
