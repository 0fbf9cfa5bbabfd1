"""Training of an autoencoder with a hyperprior, for a given time. Torch and numpy alone: it runs wherever these are.

Bits a pixel + lambda * distortion is made small, on parts of the images at qualities drawn about the middle; lambda falls with the square of the quantizer's step, so that each
quality has its own balance. For the first part of the time latents have noise in the place of rounding (soft, then hard: Guo et al. 2021). Where the distortion is 1 - MS-SSIM, the first fifth of the time goes over from squared errors to it. The rate of Adam rises, then falls along a cosine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from worker.images.hyperprior.fixed import MIDDLE, MULTIPLE, OCTAVE, PIXEL
from worker.images.hyperprior.network import Network, Shape
from worker.images.learned.descent import Descent

SHAPES = {"cpu": ((16, 24, 32), 96, 24), "cuda": ((64, 96, 160), 320, 80)}
"""`widths`, `latents`, `side` by device. Latents bound what any rate can reach: of the Kodak photos' 768 cosine coefficients of 16 x 16 the largest 96 make 27 dB, 160 29 dB, 320 33.5 dB."""
PATCH, BATCH = {"cpu": 128, "cuda": 256}, {"cpu": 4, "cuda": 16}
RATE = {"cpu": 2e-3, "cuda": 6e-4}
AROUND = 28
"""Qualities that are trained are at most so far from the middle."""
KEEP, TELL = 20.0, 40
"""Seconds between states; points of the curve."""
_WARM = 0.03
_TURN = 0.2
_NOISY = 0.6
_EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of MS-SSIM's scales: worker/kernels/similarity.py."""


@dataclass
class Course:
    """How far training is: seconds used, steps made, `curve` of {seconds, step, loss, bpp, psnr, held_out: {bpp, psnr, ms_ssim}}."""

    seconds: float = 0.0
    steps: int = 0
    curve: list[dict] = field(default_factory=list)


@dataclass
class State:
    """All that another process needs to go on."""

    network: Network
    descent: Descent
    course: Course


def begun(shape: Shape, device: str, seed: int) -> State:
    torch.manual_seed(seed)
    network = Network(shape).to(device)
    return State(network, Descent(network), Course())


def train(
    state: State, images: list[np.ndarray], held_out: list[np.ndarray], seconds: float, worth: float, measure: str, seed: int, device: str, *,
    keep: Callable[[State], None] = lambda state: None, tick: Callable[[float], None] = lambda used: None,
) -> None:  # fmt: skip
    """Changes `state`.

    Args:
        images, held_out: [H, W, C] uint8.
        seconds: in all attempts together.
        worth: lambda: bits a pixel for a squared error of one (levels of 255), or for 1 - MS-SSIM.
        measure: "mse" or "ms_ssim".
        keep: called every KEEP seconds.
        tick: called with the seconds used.
    """
    network, descent, course = state.network, state.descent, state.course
    torch.backends.cudnn.benchmark = True  # all batches are of one shape
    draw = np.random.default_rng([seed, course.steps])
    parts = [torch.from_numpy(_large_enough(i, PATCH[device])).to(device) for i in images]
    areas = np.array([p.shape[0] * p.shape[1] for p in parts], float)
    start, kept, told = time.monotonic() - course.seconds, course.seconds, []
    while (used := time.monotonic() - start) < seconds:
        share = used / seconds
        x = _batch(parts, areas / areas.sum(), draw, device)
        quality = torch.tensor(draw.uniform(MIDDLE - AROUND, MIDDLE + AROUND, len(x)), dtype=torch.float32, device=device)
        decoded, bits = network(x, quality, noisy=share < _NOISY)
        bpp, error = bits / (x.shape[2] * x.shape[3]), (PIXEL * (decoded - x)).square().mean((1, 2, 3))
        lost = _lost(decoded, x, error, measure, worth, min(1.0, share / _TURN))
        loss = (bpp + torch.exp2(2 * (quality - MIDDLE) / OCTAVE) * lost).mean()
        loss.backward()
        descent.step(RATE[device] * min(1.0, share / _WARM + 0.01) * (0.01 + 0.495 * (1 + math.cos(math.pi * share))), longest=1.0)
        course.steps += 1
        told.append(torch.stack([loss.detach(), bpp.mean().detach(), error.mean().detach()]))
        tick(used)
        if used >= len(course.curve) * seconds / TELL:
            loss_, bpp_, error_ = torch.stack(told).mean(0).tolist()
            point = {"seconds": round(used, 1), "step": course.steps, "loss": round(loss_, 5), "bpp": round(bpp_, 4), "psnr": round(10 * math.log10(255**2 / max(error_, 1e-9)), 3)}
            course.curve.append(point | {"held_out": measured(network, held_out, MIDDLE, device)})
            told = []
        if used - kept >= min(KEEP, seconds / 20):
            kept = course.seconds = used
            keep(state)
    course.seconds = time.monotonic() - start
    course.curve.append({"seconds": round(course.seconds, 1), "step": course.steps, "held_out": measured(network, held_out, MIDDLE, device)})


def _lost(decoded: torch.Tensor, x: torch.Tensor, error: torch.Tensor, measure: str, worth: float, turned: float) -> torch.Tensor:
    """lambda * distortion of each image."""
    if measure == "mse":
        return worth * error
    # about so many squared errors go with one of 1 - MS-SSIM at the middle's quality
    squared = worth / 1200 * error * (1 - turned)
    return squared + worth * turned * (1 - ms_ssim(decoded, x)) if turned else squared


def ms_ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """[N, C, H, W], floating ones of PIXEL levels -> [N]: as `worker.kernels.similarity` has it, for a whole batch and with gradients."""
    n, c = a.shape[:2]
    a, b = (x.reshape(n * c, 1, *x.shape[2:]) for x in (a, b))
    line = torch.exp(-((torch.arange(11, device=a.device, dtype=a.dtype) - 5) ** 2) / (2 * 1.5**2))
    line = line / line.sum()
    c1, c2 = (0.01 * 255 / PIXEL) ** 2, (0.03 * 255 / PIXEL) ** 2
    scales = next(s for s in range(5, 0, -1) if min(a.shape[2:]) >> s - 1 >= 11 or s == 1)
    product, total = 1.0, sum(_EXPONENTS[:scales])
    shift = 128 / PIXEL
    for s in range(scales):
        if s:
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        both = torch.cat([a, b, a * a, b * b, a * b], 1)
        low = F.conv2d(F.conv2d(both, line[None, None, :, None].expand(5, 1, -1, -1), groups=5), line[None, None, None].expand(5, 1, -1, -1), groups=5)
        ma, mb, aa, bb, ab = low.unbind(1)
        value = (2 * (ab - ma * mb) + c2) / (aa - ma * ma + bb - mb * mb + c2)
        if s == scales - 1:
            ma, mb = ma + shift, mb + shift
            value = value * (2 * ma * mb + c1) / (ma * ma + mb * mb + c1)
        product = product * value.mean((1, 2)).clamp(min=1e-4) ** (_EXPONENTS[s] / total)
    return product.reshape(n, c).mean(1)


def _large_enough(image: np.ndarray, size: int) -> np.ndarray:
    h, w = image.shape[:2]
    return np.pad(image, ((0, max(0, size - h)), (0, max(0, size - w)), (0, 0)), mode="edge")


def _batch(parts: list[torch.Tensor], shares: np.ndarray, draw: np.random.Generator, device: str) -> torch.Tensor:
    """[N, C, PATCH, PATCH], some mirrored."""
    size, out = PATCH[device], []
    for i in draw.choice(len(parts), BATCH[device], p=shares):
        top, left = (int(draw.integers(0, side - size + 1)) for side in parts[i].shape[:2])
        part = parts[i][top : top + size, left : left + size]
        out.append(part.flip(1) if draw.random() < 0.5 else part)
    return (torch.stack(out).permute(0, 3, 1, 2).float() - 128) / PIXEL


def padded(image: np.ndarray) -> torch.Tensor:
    """[H, W, C] uint8 -> [1, C, ., .] as `Network.analyse` takes it; edges are repeated."""
    h, w = image.shape[:2]
    whole = np.pad(image, ((0, -h % MULTIPLE), (0, -w % MULTIPLE), (0, 0)), mode="edge")
    return (torch.from_numpy(whole).permute(2, 0, 1)[None].float() - 128) / PIXEL


@torch.no_grad()
def measured(network: Network, images: list[np.ndarray], quality: float, device: str) -> dict | None:
    """Means over images, of at most 512 x 768 pixels each, at one quality: estimated bits a pixel, PSNR and MS-SSIM of whole levels of 255."""
    found = []
    for image in images:
        image = image[:512, :768]
        x, (h, w) = padded(image).to(device), image.shape[:2]
        decoded, bits = network(x, torch.tensor([float(quality)], device=device))
        seen, wanted = (((PIXEL * v[:, :, :h, :w] + 128).round().clamp(0, 255) - 128) / PIXEL for v in (decoded, x))
        error = float((PIXEL * (seen - wanted)).square().mean())
        found.append((float(bits) / (h * w), 10 * math.log10(255**2 / max(error, 1e-9)), float(ms_ssim(seen, wanted)) if min(h, w) >= 11 else 1.0))
    return dict(zip(("bpp", "psnr", "ms_ssim"), (round(float(v), 5) for v in np.mean(found, 0)), strict=True)) if found else None
