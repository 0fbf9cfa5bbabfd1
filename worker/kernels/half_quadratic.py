"""Offsets by half-quadratic quantization (HQQ: Badri and Shaji, 2023): of least sum |error|^0.7, so that outliers count for little, without any data.

The error is split off as e with a quadratic coupling, and two closed forms take turns:

    e      = sign(d) max(0, |d| - |d|^(p - 1) / beta)         d = x - value of its code: what the l_p norm lets pass
    offset = mean(code * scale - (x - e)),                    beta = 1.01 beta

Errors are measured in steps of the grid, so that beta means the same for every model. Powers are not the same to the last bit on every machine.
"""

from __future__ import annotations

import torch

from worker.kernels import affine

NORM, BETA, GROWTH, ITERATIONS = 0.7, 1.0, 1.01, 20


def offset(
    x: torch.Tensor, scale: torch.Tensor, start: torch.Tensor, levels: affine.Unsigned, weight: torch.Tensor | None = None, zero: bool = False, anywhere: bool = False
) -> torch.Tensor:
    """The offset [..., 1] of groups x [..., g] under scales that are given; of those met on the way from `start` the one of least sum |error|, for each group.

    Args:
        weight, zero, anywhere: as in `worker.kernels.affine`.
    """
    size = affine.size_of(x)
    unit, step, beta = x / size, scale / size, BETA
    found = best = start / size
    best_error = None
    step = torch.where(step == 0, torch.ones_like(step), step)
    for _ in range(ITERATIONS):
        codes = affine.encode(unit, step, found, levels, zero)
        away = (unit - affine.decode(codes, step, found, levels, zero)) / step
        error = away.abs()
        error = (error if weight is None else error * weight).sum(-1, keepdim=True)
        best = found if best_error is None else torch.where(error < best_error, found, best)
        best_error = error if best_error is None else torch.minimum(error, best_error)
        passed = away.sign() * (away.abs() - away.abs().pow(NORM - 1) / beta).clamp_(min=0) * step
        found = affine.fit_offset(codes, unit - passed, step, weight)
        found = found if anywhere else found.clamp(min=0)
        beta *= GROWTH
    return best * size
