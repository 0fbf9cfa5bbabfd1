"""Training of the network that stands behind a codec's transform: by Adam on patches of decoded images, for a given time.

Weights are what they will be, int8 times a power of two, in every step, and gradients pass through the rounding (straight through: Bengio, Léonard and Courville 2013). The rate falls
along a cosine of the time that is used. A state is written every now and then, from which another process goes on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from worker.images.learned import state as states
from worker.images.learned.descent import Descent
from worker.images.learned.model import MOST_SHIFT, Model
from worker.images.learned.network import FRACTION, MIDDLE, MOST, Layer, inputs_of

QUALITIES = (-8, 0, 8)
"""About that of the codec: the network is to help there too."""
PATCH, BATCH, RATE = 64, 8, 3e-3
KEEP, TELL = 20.0, 40
"""Seconds between states; points of the curve."""
_UNIT = 32.0
"""Levels of 255 to one of the network's floating values."""


@dataclass
class Course:
    """How far training is: seconds used, steps made, `curve` of {seconds, step, loss, held_out}, mean squared errors in levels of 255."""

    seconds: float = 0.0
    steps: int = 0
    curve: list[dict] = field(default_factory=list)


class Network(torch.nn.Module):
    """Args: channels: of images. width, depth: of its layers."""

    def __init__(self, channels: int, width: int, depth: int):
        super().__init__()
        sides = [inputs_of(channels), *[width] * (depth - 1), 4 * channels]
        self.layers = torch.nn.ModuleList(torch.nn.Conv2d(i, o, 3, padding=1) for i, o in zip(sides[:-1], sides[1:], strict=True))
        with torch.no_grad():
            self.layers[-1].weight *= 0.05
            self.layers[-1].bias.zero_()

    def forward(self, decoded: torch.Tensor, quality: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] levels less 128, H and W even, and [N] -> what is added, levels."""
        x = F.pixel_unshuffle(decoded, 2)
        x = torch.cat([x, (quality - MIDDLE)[:, None, None, None].expand(-1, 1, *x.shape[2:])], 1) / _UNIT
        for i, layer in enumerate(self.layers):
            x = F.conv2d(x, _rounded(layer.weight), layer.bias, padding=1)
            x = x.clamp(0, MOST / (_UNIT * 2**FRACTION)) if i + 1 < len(self.layers) else x
        return F.pixel_shuffle(x, 2) * _UNIT

    @torch.no_grad()
    def integers(self) -> tuple[Layer, ...]:
        out = []
        for layer in self.layers:
            shift = _shift(layer.weight)
            weight = (layer.weight * 2.0**shift).round().clamp(-127, 127).to(torch.int8)
            bias = (layer.bias.double() * _UNIT * 2.0 ** (FRACTION + shift)).round().clamp(-(2**31), 2**31 - 1)
            out.append(Layer(weight.cpu().numpy(), bias.cpu().numpy().astype(np.int32), shift))
        return tuple(out)


def _shift(weight: torch.Tensor) -> int:
    largest = weight.detach().abs().max().item()
    return min(MOST_SHIFT, max(0, math.floor(math.log2(127 / largest)))) if largest > 0 else 0


def _rounded(weight: torch.Tensor) -> torch.Tensor:
    scale = 2.0 ** _shift(weight)
    return weight + ((weight * scale).round().clamp(-127, 127) / scale - weight).detach()


Pairs = list[tuple[np.ndarray, np.ndarray, int]]
"""(decoded, original, quality), each [H, W, C] uint8."""


def train(
    model: Model, fitting: Pairs, held_out: Pairs, seconds: float, width: int, depth: int, seed: int, device: torch.device, *,
    state: Path | None = None, beside: dict[str, torch.Tensor] | None = None, resume: Path | None = None, tick: Callable[[float], None] = lambda used: None,
) -> tuple[Model, Course]:  # fmt: skip
    """The model with a network.

    Args:
        seconds: in all attempts together.
        state, beside: where states are written, and what is in them beside the network.
        resume: the state of an earlier attempt.
        tick: called with the seconds used.
    """
    torch.manual_seed(seed)
    network, course = Network(model.channels, width, depth).to(device), Course()
    descent = Descent(network)
    if resume is not None and (told := states.restore(resume, network, descent)):
        course = Course(**told)
    start, draw = time.monotonic() - course.seconds, np.random.default_rng([seed, course.steps])
    kept, losses = course.seconds, []
    areas = np.array([o.shape[0] * o.shape[1] for _, o, _ in fitting], float)
    size = min(PATCH, *(2 * -(-side // 2) for _, o, _ in fitting for side in o.shape[:2]))
    while (used := time.monotonic() - start) < seconds:
        decoded, original, quality = _batch(fitting, areas / areas.sum(), size, draw, device)
        added = network(decoded, quality)
        loss = (decoded + added - original).square().mean()
        loss.backward()
        descent.step(RATE * (0.01 + 0.495 * (1 + math.cos(math.pi * used / seconds))))
        course.steps += 1
        losses.append(loss.detach())
        tick(used)
        if used >= len(course.curve) * seconds / TELL:
            course.curve.append({"seconds": round(used, 1), "step": course.steps, "loss": round(float(torch.stack(losses).mean()), 5), "held_out": _error(network, held_out, device)})
            losses = []
        if state is not None and used - kept >= min(KEEP, seconds / 20):
            kept = course.seconds = used
            states.save(state, network, descent, asdict(course), beside or {})
    course.seconds = time.monotonic() - start
    return replace(model, layers=network.integers()), course


def _batch(pairs: Pairs, shares: np.ndarray, size: int, draw: np.random.Generator, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    out = []
    for i in draw.choice(len(pairs), BATCH, p=shares):
        decoded, original, quality = pairs[i]
        top, left = (2 * int(draw.integers(0, max(0, side - size) // 2 + 1)) for side in original.shape[:2])
        cut = [_square(x[top : top + size, left : left + size], size) for x in (decoded, original)]
        out.append((*cut, quality))
    both = [torch.from_numpy(np.stack([o[k] for o in out])).to(device).permute(0, 3, 1, 2).float() - 128 for k in (0, 1)]
    return *both, torch.tensor([float(o[2]) for o in out], device=device)


def _square(part: np.ndarray, size: int) -> np.ndarray:
    return np.pad(part, ((0, size - part.shape[0]), (0, size - part.shape[1]), (0, 0)), mode="edge")


@torch.no_grad()
def _error(network: Network, pairs: Pairs, device: torch.device) -> float | None:
    """Mean squared error of at most some pixels of the held-out part."""
    total, count = 0.0, 0
    for decoded, original, quality in pairs[:8]:
        size = [side // 2 * 2 for side in original.shape[:2]]
        if 0 in size:
            continue
        x, y = (torch.from_numpy(p[: min(size[0], 256), : min(size[1], 256)].copy()).to(device).permute(2, 0, 1)[None].float() - 128 for p in (decoded, original))
        total += float((x + network(x, torch.tensor([float(quality)], device=device)) - y).square().sum())
        count += y.numel()
    return round(total / count, 5) if count else None
