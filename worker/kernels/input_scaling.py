"""Scales of inputs: W = Q(W / r) * r, r [I] smaller where an input is large, so that rounding spares the weights that count.

    r = s^-1,  s = size^alpha / sqrt(max * min),  size the root mean square of each input

The alpha is the one whose output error |(W - Q) X^T|^2 is least. Source: Lin et al., 2023, "AWQ: Activation-aware Weight Quantization for LLM Compression and
Acceleration", which takes the mean of |x|; second moments are what is at hand here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

ALPHAS = tuple(k / 20 for k in range(20))
"""0 first, under which no input is scaled."""
_LEAST, _MOST = 2.0**-14, 2.0**15  # of r, as float16 keeps it well
_ROWS = 128  # of a matrix, by which alphas are compared

Rounded = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Values [R, I] that are to be rounded, and what a squared error counts at each input [I] -> the rounded values."""


def scales(weight: torch.Tensor, alpha: float) -> torch.Tensor:
    """r, float32 [I], as float16 keeps it. Args: weight: [I], the second moment of each input; one that is always 0 is not scaled."""
    size = weight.double().sqrt()
    there = size > 0
    s = torch.where(there, size, 1.0).pow(alpha)
    if bool(there.any()):
        s = torch.where(there, s / (s[there].amax() * s[there].amin()).sqrt(), 1.0)
    return s.reciprocal().clamp(_LEAST, _MOST).half().float()


def error(w: torch.Tensor, r: torch.Tensor | None, weight: torch.Tensor, gram: torch.Tensor, rounded: Rounded) -> float:
    """|(W - Q) X^T|^2, of W [R, I] float32. Args: r: None for 1. gram: X^T X. weight: its diagonal."""
    q = rounded(w, weight) if r is None else rounded(w / r, weight * r.square()) * r
    change = (q - w).double()
    return float(((change @ gram.double()) * change).sum())


def search(w: torch.Tensor, gram: torch.Tensor, rounded: Rounded) -> tuple[torch.Tensor | None, float]:
    """r and alpha; None and 0 where no scaling is better, over the whole matrix, than none.

    Args:
        w: float32 [O, I].
        gram: X^T X of its inputs, [I, I].
    """
    weight = gram.diagonal().clone()
    some = w[torch.linspace(0, len(w) - 1, min(len(w), _ROWS), device=w.device).long()]
    best, chosen = None, 0.0
    for alpha in ALPHAS:
        found = error(some, scales(weight, alpha) if alpha else None, weight, gram, rounded)
        if best is None or found < best:
            best, chosen = found, alpha
    if not chosen:
        return None, 0.0
    r = scales(weight, chosen)
    better = error(w, r, weight, gram, rounded) < error(w, None, weight, gram, rounded)
    return (r, chosen) if better else (None, 0.0)
