"""Codebooks by weighted k-means in one dimension (Lloyd, 1982), and under a price on the bits of the codes (Chou, Lookabaugh and Gray, 1989).

K codebooks are made at once, each of n values x [K, n] with weights f [K, n] >= 0: levels c minimise

    sum_i f_i (x_i - c_(j_i))^2  +  slope * sum_i r_(j_i)         r_j = -log2 of the share of code j among all codes

With slope 0 a value goes to its nearest level. Above it a value of little weight goes to a level that is farther and commoner, which is what an entropy
coder makes the most of. Sums are of integers in fixed point, so that their order is of no matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from worker.kernels import levels as starts
from worker.kernels import segments

_FIXED = 40  # bits of a term of a sum; 2^22 terms fit
_MOST = 1 << 22
_SEARCHED = 32  # levels, above which the asymptotic optimum is near enough
_BINS = (48, 128)
_FINE = 1 << 10  # rates are multiples of 1 / 1024 bit


@dataclass(frozen=True)
class Rates:
    """What codes cost.

    Args:
        bits: float32 [L], of each code.
        slope: the squared error that a bit is worth.
    """

    bits: torch.Tensor
    slope: float


def fit(x: torch.Tensor, f: torch.Tensor, size: int, zero: bool = False, iterations: int = 12) -> torch.Tensor:
    """Levels of least weighted squared error, or near it: Lloyd's iteration, from the optimum over bins for up to 32 levels and from the asymptotic one
    for more; levels that nothing chooses go where the error is largest. Exact where there are no more distinct values than levels.

    Args:
        x, f: float32 [K, n], 1 <= n <= 2^22.
        size: 1 <= size <= 256 levels.
        zero: one level of every codebook is exactly 0 and stays there.

    Returns:
        float32 [K, size], ascending.
    """
    few, exact = starts.distinct(torch.nn.functional.pad(x, (0, 1)) if zero else x, size)
    if bool(few.all()):
        return exact + 0.0
    c = _start(x, f, size - zero) if size > zero else x.new_empty(len(x), 0)
    pinned = None
    if zero:
        c, pinned = _with_zero(c)
    sums = _Sums(x, f)
    for i in range(iterations):
        codes = nearest(x, c)
        total, mass = sums(codes, size)
        moved = torch.where(mass > 0, total / mass.clamp(min=1), c.double()).float()
        empty = mass == 0
        if pinned is not None:
            moved.scatter_(1, pinned, 0)
            empty.scatter_(1, pinned, False)
        if i + 1 < iterations:
            moved = _reseeded(moved, empty & ~few[:, None], x, f, c, codes)
        if torch.equal(moved, c):
            break
        c, pinned = _ordered(moved, pinned)
    return torch.where(few[:, None], exact, c) + 0.0  # a zero has no sign


def _start(x: torch.Tensor, f: torch.Tensor, size: int) -> torch.Tensor:
    if size > _SEARCHED:
        return starts.spread(x, f, size)
    return segments.best(x, f, size, min(_BINS[1], max(_BINS[0], 6 * size)))


def fit_priced(x: torch.Tensor, f: torch.Tensor, c: torch.Tensor, slope: float, zeros: int | None = None, iterations: int = 12) -> tuple[torch.Tensor, Rates]:
    """Levels of one codebook under a price; levels that nothing chooses are dropped.

    Args:
        x, f: float32 [1, n].
        c: float32 [1, L], where to begin.
        zeros: how many pruned weights there are beside x: one level is exactly 0 for them.

    Returns:
        float32 [1, L' <= L], ascending, and the rates of its codes.
    """
    pinned = None
    if zeros is not None:
        c = c[:, c[0] != 0]
        c, pinned = _with_zero(c)
    sums, rates = _Sums(x, f), None
    for _ in range(iterations):
        codes = nearest(x, c) if rates is None else assign(x, f, c, rates)
        total, mass = sums(codes, c.shape[1])
        count = torch.bincount(codes.reshape(-1), minlength=c.shape[1])
        kept = count > 0
        c = torch.where(mass > 0, total / mass.clamp(min=1), c.double()).float()
        if pinned is not None:
            at = int(pinned)
            c[0, at], kept[at] = 0, True
            count[at] += zeros
        c, count = c[:, kept], count[kept]
        order = c.sort(dim=1, stable=True).indices[0]
        c, count = c[:, order], count[order]
        if pinned is not None:
            pinned = (c == 0).int().argmax(dim=1, keepdim=True)
        rates = Rates(_bits(count), slope)
    return c, rates


def assign(x: torch.Tensor, f: torch.Tensor, c: torch.Tensor, rates: Rates | None = None) -> torch.Tensor:
    """int64 [K, n]: the nearest level, or the one of least cost if bits rise from the commonest code to both sides. The search walks from the nearest
    level towards the commonest one, for as long as the distance alone leaves room below the least cost so far."""
    best = nearest(x, c)
    if rates is None or not rates.slope:
        return best
    shape, best = best.shape, best.reshape(-1)
    first = torch.zeros_like(best) if len(c) == 1 else torch.arange(len(x), device=x.device).repeat_interleave(x.shape[1]) * c.shape[1]
    table, bits, common = c.reshape(-1), rates.bits, int(rates.bits.argmin())
    price = (rates.slope / f.clamp(min=torch.finfo(torch.float32).tiny)).reshape(-1)
    x = x.reshape(-1)
    least = (x - table[first + best]).square_().addcmul_(price, bits[best])
    at = (best != common).nonzero()[:, 0]
    here = best[at]
    while len(at):
        here = here + (common - here).sign()
        away, worth = (x[at] - table[first[at] + here]).square_(), price[at]
        cost = torch.addcmul(away, worth, bits[here])
        better = cost < least[at]
        best[at[better]], least[at[better]] = here[better], cost[better]
        on = (here != common) & (torch.addcmul(away, worth, bits[common]) < least[at])
        at, here = at[on], here[on]
    return best.reshape(shape)


def nearest(x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """int64 [K, n]: the nearest level of each value, the lower of two."""
    middle = c[:, 1:] * 0.5 + c[:, :-1] * 0.5
    if c.shape[0] == 1:
        return torch.searchsorted(middle[0], x.contiguous())
    return torch.searchsorted(middle.contiguous(), x.contiguous())


class _Sums:
    """Sums of f x and of f by code, as float64 [K, L] in one and the same scale."""

    def __init__(self, x: torch.Tensor, f: torch.Tensor):
        assert x.shape[1] <= _MOST
        weighted = f.double() * x
        self.scale = [torch.exp2(torch.floor(_FIXED - torch.log2(v.abs().amax(dim=1, keepdim=True).clamp(min=1e-300)))) for v in (weighted, f.double())]
        self.terms = [(v * s).round_().long() for v, s in zip((weighted, f.double()), self.scale, strict=True)]

    def __call__(self, codes: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        total, mass = (torch.zeros(len(codes), size, dtype=torch.int64, device=codes.device).scatter_add_(1, codes, t).double() for t in self.terms)
        return total / self.scale[0] * self.scale[1], mass


def _with_zero(c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels with a 0 among them, and where it is: [K, 1]."""
    return _ordered(torch.nn.functional.pad(c, (0, 1)), torch.full((len(c), 1), c.shape[1], device=c.device))


def _ordered(c: torch.Tensor, pinned: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    c, order = c.sort(dim=1, stable=True)
    return c, None if pinned is None else (order == pinned).int().argmax(dim=1, keepdim=True)


def _reseeded(moved: torch.Tensor, empty: torch.Tensor, x: torch.Tensor, f: torch.Tensor, c: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """The first empty level of each codebook at the value with the largest error."""
    rows = empty.any(dim=1).nonzero()[:, 0]
    if len(rows):
        error = (x[rows] - c[rows].gather(1, codes[rows])).square() * f[rows]
        moved[rows, empty[rows].int().argmax(dim=1)] = x[rows].gather(1, error.argmax(dim=1, keepdim=True))[:, 0]
    return moved


def _bits(count: torch.Tensor) -> torch.Tensor:
    """-log2 of each code's share; the same on every device, since it is rounded."""
    share = count.double().cpu().clamp(min=0.5) / count.sum().cpu()
    return ((-torch.log2(share) * _FINE).round() / _FINE).float().to(count.device)
