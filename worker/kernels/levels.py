"""Where the levels of codebooks start, and how they are stored. Everything works on K codebooks at once, each of n values x with weights f >= 0.

A value of weight 0 (a pruned weight, the padding of a short group) moves no level.
"""

from __future__ import annotations

import math

import torch

_HALF = torch.finfo(torch.float16)
_LOSS = 0.01  # of the squared error: what rounding levels to float16 may add


def shares(x: torch.Tensor, f: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values in order, their weights, and how much of all levels belongs below each value when there are many.

    The density of the best levels is the cube root of f times the density of x (Panter and Dite, 1951). Between neighbours x_i < x_(i+1) that one is 1
    over their distance d, so that the gap takes a share f^(1/3) d^(2/3).

    Returns:
        float64 [K, n] each; the last starts with 0 and is not normalized.
    """
    x, order = x.sort(dim=1)
    x, f = x.double(), f.gather(1, order).double()
    share = ((f[:, 1:] + f[:, :-1]) / 2).pow(1 / 3) * x.diff(dim=1).pow(2 / 3)
    return x, f, torch.nn.functional.pad(share.cumsum(1), (1, 0))


def spread(x: torch.Tensor, f: torch.Tensor, size: int) -> torch.Tensor:
    """Levels at equal shares: float32 [K, size], ascending."""
    if x.shape[1] == 1:
        return x.expand(-1, size).contiguous()
    x, _, reached = shares(x, f)
    wanted = (torch.arange(size, device=x.device, dtype=torch.float64) + 0.5) / size * reached[:, -1:]
    right = torch.searchsorted(reached, wanted).clamp(1, x.shape[1] - 1)
    low, high = reached.gather(1, right - 1), reached.gather(1, right)
    at = torch.where(high > low, (wanted - low) / (high - low), torch.zeros_like(low))
    below, above = x.gather(1, right - 1), x.gather(1, right)
    return (below + (above - below) * at).float().sort(dim=1).values


def distinct(x: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The codebooks of those that have no more than `size` distinct values: no other is as good.

    Returns:
        bool [K], and float32 [K, size]: the values, ascending, the last one repeated; what stands in other rows means nothing.
    """
    x = x.sort(dim=1).values
    rank = torch.nn.functional.pad((x[:, 1:] != x[:, :-1]).cumsum(1), (1, 0))
    few = rank[:, -1] < size
    out = x[:, -1:].expand(-1, size).clone()
    return few, out.scatter_(1, rank.clamp(max=size - 1), x)


def grid(x: torch.Tensor, step: float, size: int) -> torch.Tensor:
    """Levels at multiples of `step`, only where there are values; a wider step where they are more than `size`.

    Args:
        x: float32 [1, n].

    Returns:
        float32 [1, at most size], ascending.
    """
    most = float(x.abs().max())
    step = max(step, 1e-7 * most, 1e-38)
    while True:
        found = (x / step).round_().unique()
        if len(found) <= size:
            return (found * step).unsqueeze(0)
        step *= 1.1


def stored(levels: torch.Tensor, mass: torch.Tensor, loss: float, dtype: torch.dtype) -> torch.Tensor:
    """Levels as they are kept: float16, or float32 where float16 would not hold them or would add to the error.

    Args:
        levels: float32 [K, L].
        mass: [K, L], the sum of the weights of each level's values.
        loss: the weighted squared error that there is.
        dtype: what the values are decoded to in the end: levels are rounded to it first, so that decoding rounds nothing.
    """
    if dtype in (torch.float16, torch.bfloat16):
        levels = levels.clamp(torch.finfo(dtype).min, torch.finfo(dtype).max).to(dtype).float()
    half = levels.half()
    added = float(((half.float() - levels).double().square() * mass).sum())
    fits = not levels.numel() or float(levels.abs().max()) <= _HALF.max
    return half if fits and math.isfinite(added) and added <= _LOSS * loss else levels
