"""Levels at equal distance: scales, codes and back. Pure functions on float32 [N, g]: N groups of g values that share a scale.

Symmetric absmax scale = absmax / ((2^b - 1) / 2), codes in [-2^(b-1), 2^(b-1) - 1] (the convention of compressed-tensors); fp8 (e4m3): absmax / 448.
Asymmetric: the range includes 0, the zero point is an integer, value = (code - zero_point) * scale. Divisions are IEEE, rounding is half to even, and
codes are computed against the scale as it is stored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from worker.kernels import native
from worker.kernels.shares import portion, rows_of

FP8_MAX = 448.0


@dataclass(frozen=True)
class Levels:
    """The codes of a scheme: integers of `num_bits`, or e4m3 floats where `floating`."""

    num_bits: int
    floating: bool = False

    @property
    def low(self) -> float:
        return -FP8_MAX if self.floating else -float(1 << (self.num_bits - 1))

    @property
    def high(self) -> float:
        return FP8_MAX if self.floating else float((1 << (self.num_bits - 1)) - 1)

    @property
    def half_range(self) -> float:
        """absmax divided by this is the symmetric scale."""
        return FP8_MAX if self.floating else ((1 << self.num_bits) - 1) / 2

    def round(self, x: torch.Tensor) -> torch.Tensor:
        """The nearest level, as float32."""
        if self.floating:
            return x.clamp(self.low, self.high).to(torch.float8_e4m3fn).float()
        return x.round_().clamp_(self.low, self.high)


def stored(scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`scale` as `dtype` keeps it, in float32. A scale that would be 0 or infinite there becomes the nearest one that is neither."""
    info = torch.finfo(dtype)
    most = min(info.max, torch.finfo(torch.float32).max)
    kept = scale.clamp(-most, most).to(dtype)
    tiny = torch.full_like(kept, info.eps)
    return torch.where(kept == 0, torch.where(scale < 0, -tiny, tiny), kept).float()


def divide(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x [N, g] / scale [N, 1]. A subnormal scale can make it infinite, which the clamp of `Levels.round` takes."""
    return torch.div(x, scale).nan_to_num_(nan=0.0, posinf=torch.finfo(torch.float32).max, neginf=torch.finfo(torch.float32).min)


def over(x: torch.Tensor, number: float) -> torch.Tensor:
    """x / number by IEEE division on every device: CUDA multiplies by the reciprocal of a plain number, which rounds otherwise."""
    return x / torch.full((), number, dtype=x.dtype, device=x.device)


def absmax_scale(x: torch.Tensor, levels: Levels) -> torch.Tensor:
    """[N, 1]; 0 for groups of zeros."""
    return over(x.abs().amax(-1, keepdim=True), levels.half_range) if x.shape[-1] else x.new_zeros(x.shape[0], 1)


def asymmetric(x: torch.Tensor, levels: Levels, dtype: torch.dtype, shrink: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale as stored, and zero point (float32 holding integers), both [N, 1], for the range of `x` (with 0 in it) times `shrink`."""
    low, high = x.amin(-1, keepdim=True).clamp(max=0) * shrink, x.amax(-1, keepdim=True).clamp(min=0) * shrink
    steps = levels.high - levels.low
    width = high - low
    scale = stored(torch.where(width.isinf(), over(high, steps) - over(low, steps), over(width, steps)), dtype)
    return scale, (levels.low - divide(low, scale)).round_().clamp_(levels.low, levels.high)


def encode(x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None, levels: Levels) -> torch.Tensor:
    """Codes of x [N, g], as float32."""
    if zero_point is None:
        return levels.round(divide(x, scale))
    return divide(x, scale).round_().add_(zero_point).clamp_(levels.low, levels.high)


def decode(codes: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None) -> torch.Tensor:
    return (codes if zero_point is None else codes - zero_point) * scale


def dequantize(codes: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None, group_size: int) -> torch.Tensor:
    """`(code - zero_point) * scale` in float32: [O, I] of codes [O, I] and scales [O or 1, G]; the last group may be short."""
    columns = codes.shape[1]

    def spread(t: torch.Tensor) -> torch.Tensor:
        t = t.float()
        return t if t.shape[1] == 1 else t.repeat_interleave(group_size, dim=1)[:, :columns]

    values = codes.float()
    if zero_point is not None:
        values -= spread(zero_point)
    return values.mul_(spread(scale))


def dense(codes: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None, group_size: int, dtype: torch.dtype, bounded: bool = False) -> torch.Tensor:
    """`dequantize` rounded once to `dtype`, some rows at a time; one row of scales may stand for several (see `shares`).

    Args:
        bounded: what a scale rounded up decodes beyond the largest float16 stays at it.
    """
    if native.decodes(codes, dtype):
        return native.dequantize(codes, scale, zero_point, group_size, dtype, bounded)
    out = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    most = torch.finfo(dtype).max if bounded and dtype == torch.float16 else math.inf
    step = max(1, portion(codes.device) // max(1, codes.shape[1]))
    for i in range(0, codes.shape[0], step):
        rows = slice(i, i + step)
        shared = (None if t is None else rows_of(t, rows, len(codes)) for t in (scale, zero_point))
        out[rows] = dequantize(codes[rows], *shared, group_size).clamp_(-most, most).to(dtype)
    return out
