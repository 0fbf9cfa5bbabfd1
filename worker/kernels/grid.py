"""Values to multiples of a power of two: how coarse they may be when a bit has a price."""

from __future__ import annotations

import math

import torch

FINEST = 24  # doublings below the largest value: float32 keeps no more


def coarsest(x: torch.Tensor, f: torch.Tensor, price: float) -> float | None:
    """The step g = 2^e that minimises  sum f (x - g round(x / g))^2  +  price * n * (entropy of the multiples)  over all e from the largest value down.

    Args:
        x, f: floating, one shape; f >= 0.
        price: of a bit, in the unit of the first sum.

    Returns:
        None where rounding to no such step pays (or there is nothing to round).
    """
    top = float(x.abs().max()) if x.numel() else 0.0
    if not torch.finfo(torch.float32).tiny <= top < math.inf or price <= 0:
        return None
    x, f, best, found = x.double().reshape(-1), f.double().reshape(-1), math.inf, None
    for e in range(math.ceil(math.log2(top)), math.ceil(math.log2(top)) - FINEST, -1):
        multiples = (x / 2.0**e).round()
        shares = torch.unique(multiples, return_counts=True)[1].double() / len(x)
        cost = float((f * (x - multiples * 2.0**e).square()).sum()) - price * len(x) * float((shares * shares.log2()).sum())
        if cost < best:
            best, found = cost, 2.0**e
    return found
