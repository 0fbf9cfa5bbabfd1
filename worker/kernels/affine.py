"""Levels under a scale and a float offset: `value = level * scale - offset`. Pure functions on float32 groups [..., g] with scale and offset [..., 1].

Where `zero` is set, the code whose level is nearest to 0, z = offset / scale rounded half to even and clamped (0 where the scale is 0), stands for exactly
0, so that a pruned weight stays one. Groups are normalised before anything is squared, sums have a fixed order, and divisions are IEEE.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from worker.kernels import native
from worker.kernels.lookup import look_up
from worker.kernels.scale_search import candidates
from worker.kernels.sums import ordered_sum
from worker.kernels.uniform import divide, over

_WIDTHS = 0.5, 1.1, 12  # of the range: the first, the last, how many
_POLISH = 4  # times that the best candidate is refined once more


@dataclass(frozen=True)
class Unsigned:
    """The integers 0 to 2^num_bits - 1."""

    num_bits: int

    @property
    def high(self) -> float:
        return float((1 << self.num_bits) - 1)

    @property
    def half_range(self) -> float:
        """absmax divided by this is the scale where all values have one sign."""
        return self.high

    def round(self, x: torch.Tensor) -> torch.Tensor:
        return x.round_().clamp_(0, self.high)


def quotient(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x / scale, 0 where the scale is 0."""
    return divide(x, scale.masked_fill(scale == 0, torch.inf))


def zero_code(scale: torch.Tensor, offset: torch.Tensor, levels: Unsigned) -> torch.Tensor:
    """The code that stands for 0, shaped like `scale`."""
    return levels.round(quotient(offset, scale))


def encode(x: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, levels: Unsigned, zero: bool = False) -> torch.Tensor:
    """The nearest codes, as float32."""
    codes = levels.round(quotient(x + offset, scale))
    if not zero:
        return codes
    z = zero_code(scale, offset, levels)
    beside = torch.where(codes == z, (z + x.sign()).clamp_(0, levels.high), z)  # the level at z has moved: to or from its neighbours
    other = torch.where(beside == z, x, beside * scale - offset - x).abs() < torch.where(codes == z, x, codes * scale - offset - x).abs()
    return torch.where(x == 0, z, torch.where(other, beside, codes))


def decode(codes: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, levels: Unsigned, zero: bool = False) -> torch.Tensor:
    values = codes * scale - offset
    return torch.where(codes == zero_code(scale, offset, levels), torch.zeros_like(values), values) if zero else values


def size_of(x: torch.Tensor) -> torch.Tensor:
    """The largest magnitude of each group, 1 for zeros."""
    top = x.abs().amax(-1, keepdim=True) if x.shape[-1] else x.new_zeros((*x.shape[:-1], 1))
    return torch.where(top == 0, torch.ones_like(top), top)


def span(x: torch.Tensor, levels: Unsigned, weight: torch.Tensor | None, anywhere: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and offset whose levels reach from the least value to the largest.

    Args:
        weight: broadcast over x; values of weight 0 do not count.
        anywhere: the range need not include 0; else the offset is not negative.
    """
    size = size_of(x)
    low, high = _ends(x / size, weight, anywhere)
    return over(high - low, levels.high) * size, -low * size


def _ends(unit: torch.Tensor, weight: torch.Tensor | None, anywhere: bool) -> tuple[torch.Tensor, torch.Tensor]:
    none = torch.zeros_like(unit, dtype=torch.bool) if weight is None else (weight == 0).expand(unit.shape)
    low, high = unit.masked_fill(none, torch.inf).amin(-1, keepdim=True), unit.masked_fill(none, -torch.inf).amax(-1, keepdim=True)
    flat = low >= high  # equal values, or none: between them and 0 there is a range
    within = flat if anywhere else torch.ones_like(flat)
    return torch.where(within, low.clamp(max=0), low), torch.where(within, high.clamp(min=0), high)


def fit(
    codes: torch.Tensor, x: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, weight: torch.Tensor | None, anywhere: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale and offset of least squared error for codes [..., g] of x; those given where all codes are one and the same."""
    c, m = mean(codes, weight), mean(x, weight)
    away = codes - c
    weighed = away if weight is None else away * weight
    spread = mean(weighed * away)
    together = mean(weighed * (x - m))
    found = together / torch.where(spread == 0, torch.ones_like(spread), spread)
    below = found * c - m
    if not anywhere:  # no offset below 0: the line goes through it
        share = 1.0 if weight is None else mean(weight.expand(x.shape))
        energy = spread + share * c * c
        through = (together + share * c * m) / torch.where(energy == 0, torch.ones_like(energy), energy)
        found, below = torch.where(below < 0, through, found), below.clamp(min=0)
    usable = (spread > 0) & (found > 0)
    return torch.where(usable, found, scale), torch.where(usable, below, offset)


def fit_offset(codes: torch.Tensor, x: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    """The offset of least squared error for codes of x under a scale that is given."""
    return mean(codes * scale - x, weight)


def mean(x: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """[..., 1], of those that count; 0 of none."""
    if weight is None:
        return over(_sum(x), float(max(1, x.shape[-1])))
    w = weight.expand(x.shape)
    return _sum(w * x) / _sum(w).clamp_(min=1)


def _sum(x: torch.Tensor) -> torch.Tensor:
    return ordered_sum(x)[..., None]


def loss(x: torch.Tensor, decoded: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    """Squared error [..., 1]."""
    d = (decoded - x).square_()
    return _sum(d if weight is None else d * weight)


def search(
    x: torch.Tensor, levels: Unsigned, weight: torch.Tensor | None = None, zero: bool = False, anywhere: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and offset of least squared error among those of the range, and of 12 widths about its middle, each refined by least squares against its own codes, the best
    of them four times more. Not yet as they are stored.

    Source: the refinement is that of ggml's make_qkx2_quants, the grid wider.
    """
    if x.dtype == torch.float32 and x.numel() and native.takes(x):
        return native.affine_search(x, levels.high, weight, zero, anywhere, candidates(*_WIDTHS), _POLISH)
    size = size_of(x)
    unit = x / size
    low, high = _ends(unit, weight, anywhere)
    middle, width = (low + high) * 0.5, high - low
    best_error = best_scale = best_offset = None

    def better(scale: torch.Tensor, offset: torch.Tensor) -> None:
        nonlocal best_error, best_scale, best_offset
        error = loss(unit, decode(encode(unit, scale, offset, levels, zero), scale, offset, levels, zero), weight)
        if best_error is None:
            best_error, best_scale, best_offset = error, scale, offset
            return
        less = error < best_error
        best_error, best_scale, best_offset = (torch.where(less, a, b) for a, b in ((error, best_error), (scale, best_scale), (offset, best_offset)))

    better(over(width, levels.high), -low)
    for c in candidates(*_WIDTHS):
        scale = over(width * c, levels.high)
        offset = width * (0.5 * c) - middle
        offset = offset if anywhere else offset.clamp(min=0)
        better(*fit(encode(unit, scale, offset, levels, zero), unit, scale, offset, weight, anywhere))
    for _ in range(_POLISH):
        better(*fit(encode(unit, best_scale, best_offset, levels, zero), unit, best_scale, best_offset, weight, anywhere))
    return best_scale * size, best_offset * size


def factors(values: torch.Tensor, above: torch.Tensor | None, each: int, exponent: int) -> torch.Tensor:
    """Scales or offsets of groups [R, G] as they were stored: floats, or integers under a float16 [R, ceil(G / each)] (see `two_level`). float32."""
    if above is None:
        return values.float()
    each = min(each, max(1, values.shape[1]))  # a file may claim more groups for each than there are
    return above.float().repeat_interleave(each, dim=1)[:, : values.shape[1]] * values.float() * 2.0**exponent


def grid_values(
    codes: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None, num_bits: int, group_size: int, zero: bool, levels: torch.Tensor | None = None
) -> torch.Tensor:
    """`level * scale - offset` in float32: [R, I] of codes uint8 [R, I] and float32 scales and offsets [R or 1, G]; the last group may be short.

    Args:
        levels: float32 [2^num_bits], where codes are places in it; then there is no offset.
    """
    columns = codes.shape[1]

    def spread(t: torch.Tensor) -> torch.Tensor:
        return t if t.shape[1] == 1 else t.repeat_interleave(group_size, dim=1)[:, :columns]

    if levels is not None:
        return look_up(codes, levels[None], max(1, columns)).mul_(spread(scale))
    if offset is None:
        return (codes.float() - float(1 << (num_bits - 1))).mul_(spread(scale))
    values = (codes.float() * spread(scale)).sub_(spread(offset))
    return values.masked_fill_(codes == spread(zero_code(scale, offset, Unsigned(num_bits))), 0) if zero else values
