"""Levels at equal distance: scales, codes and back. Pure functions on float32 [N, g]: N groups of g values that share a scale.

Symmetric absmax scale = absmax / ((2^b - 1) / 2), codes in [-2^(b-1), 2^(b-1) - 1] (the convention of compressed-tensors); fp8 (e4m3): absmax / 448.
Asymmetric: the range includes 0, the zero point is an integer, value = (code - zero_point) * scale. Divisions are IEEE, rounding is half to even, and
codes are computed against the scale as it is stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from worker.kernels.sums import ordered_sum

FP8_MAX = 448.0
CANDIDATES = 24
"""Scales tried per sign: c * absmax scale, for c from 0.4 to 1.15."""


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


@cache
def candidates(first: float, last: float, count: int = CANDIDATES) -> tuple[float, ...]:
    """The factors that a search tries."""
    return tuple(torch.linspace(first, last, count, device="cpu").tolist())


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


def squared_error(x: torch.Tensor, decoded: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """[N, 1], summed in the fixed order; each square counts its weight (shaped as `x`, or so that it spreads to it)."""
    squares = (decoded - x).square_()
    return ordered_sum(squares if weight is None else squares * weight)[:, None]


def search(x: torch.Tensor, levels: Levels, dtype: torch.dtype, weight: torch.Tensor | None = None) -> torch.Tensor:
    """The scale of least squared error among 24 sizes times 2 signs, each refined by least squares against its own codes.

    The signed scale matters because the code range is not symmetric: its spare level goes to the side that needs it. `x` is normalised by its absmax
    first, so that no square overflows. Source: the refinement is one step of Lloyd's iteration on the scale alone (as in ggml's make_qx_quants).

    Args:
        x: float32 [N, g].
        weight: float32, spreading to [N, g]: what each squared error counts; None: all alike.

    Returns:
        float32 [N, 1], as `dtype` stores it.
    """
    top = x.abs().amax(-1, keepdim=True) if x.shape[-1] else x.new_zeros(x.shape[0], 1)
    safe = torch.where(top == 0, torch.ones_like(top), top)
    unit = x / safe
    best_error, best = None, None
    for sign in (1.0, -1.0) if not levels.floating else (1.0,):
        for c in candidates(0.4, 1.15):
            codes = levels.round(over(unit, sign * c / levels.half_range))
            heavy = codes if weight is None else codes * weight
            energy = ordered_sum(heavy * codes)[:, None]
            fit = ordered_sum(heavy * unit)[:, None] / torch.where(energy == 0, torch.ones_like(energy), energy)
            scale = stored(fit * safe, dtype)
            near = scale / safe
            near = torch.where(near == 0, torch.full_like(near, torch.finfo(torch.float32).tiny), near)
            error = squared_error(unit, levels.round(divide(unit, near)) * near, weight)
            if best is None:
                best_error, best = error, scale
            else:
                better = error < best_error
                best_error, best = torch.where(better, error, best_error), torch.where(better, scale, best)
    return torch.where(top == 0, stored(torch.zeros_like(top), dtype), best)


def search_asymmetric(x: torch.Tensor, levels: Levels, dtype: torch.dtype, weight: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The range, shrunk from both ends, of least squared error, which counts as in `search`. Shapes as `asymmetric`."""
    best_error = best_scale = best_zero = None
    size = x.abs().amax(-1, keepdim=True) if x.shape[-1] else x.new_zeros(x.shape[0], 1)
    safe = torch.where(size == 0, torch.ones_like(size), size)
    for c in candidates(1.0, 0.4):
        scale, zero = asymmetric(x, levels, dtype, c)
        error = squared_error(x / safe, decode(encode(x, scale, zero, levels), scale, zero) / safe, weight)
        if best_error is None:
            best_error, best_scale, best_zero = error, scale, zero
        else:
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
    return best_scale, best_zero


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
