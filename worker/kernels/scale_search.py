"""The scale of least squared error. Pure functions on float32 [N, g]: N groups of g values that share a scale (see `uniform`).

Symmetric integers are scored in 16-bit integers, so that no order of summation matters and the compiled kernel (`cpp/uniform.hpp`) can be fast: for each of 24
sizes c * absmax, and each sign, the codes q of x are those of u = round(32767 x / absmax), and what is left of the squared error once the scale is fitted to
them is |x|^2 - (q.x)^2 / q.q, so that the largest (q.u)^2 / q.q wins. The signed scale matters because the range of codes is not symmetric: its spare level goes to the
side that needs it. The best is refined by least squares against its own codes, and once more against the codes under the scale as it is stored.

Source: the refinement is one step of Lloyd's iteration on the scale alone (as in ggml's make_qx_quants).
"""

from __future__ import annotations

from functools import cache

import torch

from worker.kernels import native
from worker.kernels.sums import ordered_sum
from worker.kernels.uniform import Levels, asymmetric, decode, divide, encode, over, stored

CANDIDATES = 24
"""Scales tried per sign: c * absmax scale, for c from 0.4 to 1.15."""
FIRST, LAST = 0.4, 1.15
_UNIT = 15  # bits of u


@cache
def candidates(first: float, last: float, count: int = CANDIDATES) -> tuple[float, ...]:
    """The factors that a search tries."""
    return tuple(torch.linspace(first, last, count, device="cpu").tolist())


@cache
def multipliers(num_bits: int) -> tuple[tuple[int, ...], int]:
    """What u is multiplied by for each candidate, below 2^15, and the bits that are shifted out beside those of u."""
    steps = [((1 << num_bits) - 1) / 2 / c for c in candidates(FIRST, LAST)]
    shift = 0
    while round(max(steps) * 2 ** (shift + 1)) + 2**shift < 1 << _UNIT:  # what rounding adds has room, too
        shift += 1
    return tuple(round(s * 2**shift) for s in steps), shift


@cache
def shrinks() -> tuple[float, ...]:
    """What a range with a zero point is multiplied by for each candidate."""
    return candidates(1.0, FIRST)


def search(x: torch.Tensor, levels: Levels, dtype: torch.dtype, weight: torch.Tensor | None = None) -> torch.Tensor:
    """Args:
        x: float32 [N, g].
        weight: float32, spreading to [N, g]: what each squared error counts; None: all alike.

    Returns:
        float32 [N, 1], as `dtype` stores it.
    """
    if weight is None and isinstance(levels, Levels) and not levels.floating and x.dtype == torch.float32 and x.numel() and native.takes(x):
        return native.quantize(x, levels, x.shape[1], multipliers(levels.num_bits), dtype)[1]
    top = x.abs().amax(-1, keepdim=True) if x.shape[-1] else x.new_zeros(x.shape[0], 1)
    safe = torch.where(top == 0, torch.ones_like(top), top)
    unit = x / safe
    codes = _by_integers(unit, levels) if weight is None and isinstance(levels, Levels) and not levels.floating else _by_floats(unit, levels, weight)

    def refined(codes: torch.Tensor) -> torch.Tensor:
        energy, fit = _energies(codes, unit, weight)
        return stored(fit / torch.where(energy == 0, torch.ones_like(energy), energy) * safe, dtype)

    def error(scale: torch.Tensor) -> torch.Tensor:
        near = scale / safe
        near = torch.where(near == 0, torch.full_like(near, torch.finfo(torch.float32).tiny), near)
        return squared_error(unit, levels.round(divide(unit, near)) * near, weight)

    scale = refined(codes)
    again = refined(levels.round(divide(x, scale)))
    found = torch.where(error(again) < error(scale), again, scale)
    return torch.where(top == 0, stored(torch.zeros_like(top), dtype), found)


def _by_integers(unit: torch.Tensor, levels: Levels) -> torch.Tensor:
    """The codes of the best candidate, as float32."""
    u = (unit * ((1 << _UNIT) - 1)).round().int()
    steps, shift = multipliers(levels.num_bits)
    scores, best = None, None
    for sign in (1, -1):
        for step in steps:
            codes = sign * (((u * step + (1 << (_UNIT - 1))) >> _UNIT) + (1 << (shift - 1)) >> shift)
            codes = codes.clamp_(int(levels.low), int(levels.high))
            own, fit = (codes * codes).sum(-1, keepdim=True).double(), (codes * u).sum(-1, keepdim=True).double()
            found = torch.where(own == 0, torch.zeros_like(own), fit * fit / own)
            better = torch.ones_like(found, dtype=torch.bool) if scores is None else found > scores
            scores, best = (found, codes) if scores is None else (torch.where(better, found, scores), torch.where(better, codes, best))
    return best.float()


def _by_floats(unit: torch.Tensor, levels: Levels, weight: torch.Tensor | None) -> torch.Tensor:
    """The same where errors count unlike, or levels are floats (of both signs alike)."""
    scores, best = None, None
    for sign in (1.0, -1.0) if not levels.floating else (1.0,):
        for c in candidates(FIRST, LAST):
            codes = levels.round(over(unit, sign * c / levels.half_range))
            own, fit = _energies(codes, unit, weight)
            found = torch.where(own == 0, torch.zeros_like(own), fit * (fit / torch.where(own == 0, torch.ones_like(own), own)))
            better = torch.ones_like(found, dtype=torch.bool) if scores is None else found > scores
            scores, best = (found, codes) if scores is None else (torch.where(better, found, scores), torch.where(better, codes, best))
    return best


def _energies(codes: torch.Tensor, unit: torch.Tensor, weight: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of code^2 and of code * value, [N, 1], each counting its weight."""
    heavy = codes if weight is None else codes * weight
    return ordered_sum(heavy * codes)[:, None], ordered_sum(heavy * unit)[:, None]


def squared_error(x: torch.Tensor, decoded: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """[N, 1], summed in the fixed order; each square counts its weight (shaped as `x`, or so that it spreads to it)."""
    squares = (decoded - x).square_()
    return ordered_sum(squares if weight is None else squares * weight)[:, None]


def search_asymmetric(x: torch.Tensor, levels: Levels, dtype: torch.dtype, weight: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The range, shrunk from both ends, of least squared error, which counts as in `search`. Shapes as `uniform.asymmetric`."""
    best_error = best_scale = best_zero = None
    size = x.abs().amax(-1, keepdim=True) if x.shape[-1] else x.new_zeros(x.shape[0], 1)
    safe = torch.where(size == 0, torch.ones_like(size), size)
    for c in shrinks():
        scale, zero = asymmetric(x, levels, dtype, c)
        error = squared_error(x / safe, decode(encode(x, scale, zero, levels), scale, zero) / safe, weight)
        if best_error is None:
            best_error, best_scale, best_zero = error, scale, zero
        else:
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
    return best_scale, best_zero
