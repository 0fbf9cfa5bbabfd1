"""Which way each weight is rounded, and how wide its group's levels are, learned by the signs of gradients.

With u = w / s, V in [-1/2, 1/2] of each weight, and factors f in [1/2, 3/2] of each group, which are at first 0 and 1:

    symmetric     s = f s0                                      c = clamp(round(u + V), low, high)        value = c s
    asymmetric    L = f_L (low - z0) s0, U = f_U (high - z0) s0, the lowest and the highest level
                  s = (U - L) / (high - low)
                  z = clamp(round(low - L / s), low, high)      c = clamp(round(u + V) + z, low, high)    value = (c - z) s

Rounding passes gradients on as if it were none (straight through), a clamp where it does nothing. Every step moves V and f by its rate against the sign of the
gradient. Source: Cheng et al., 2023, "Optimize Weight Rounding via Signed Gradient Descent for the Quantization of LLMs" (AutoRound).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

FARTHEST = 0.5
"""Of V from 0, and of a factor from 1."""


class Ends(NamedTuple):
    """The lowest and the highest level of groups, [R, G] float32, and how many levels lie between them."""

    low: torch.Tensor
    high: torch.Tensor
    steps: float


def moved(values: torch.Tensor, gradient: torch.Tensor, rate: float, middle: float) -> torch.Tensor:
    """One step of V (about 0) or of factors (about 1), shapes alike."""
    return torch.sub(values, gradient.sign(), alpha=rate).clamp_(middle - FARTHEST, middle + FARTHEST)


def scale_gradient(gradient: torch.Tensor, values: torch.Tensor, w: torch.Tensor, scale: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Of s by weight: d value / d s is c - z - u where no clamp did anything, c - z elsewhere. Args: inside: 1 where none did, else 0. Shapes spread."""
    return torch.addcmul(values, w, inside, value=-1).mul_(gradient).div_(scale)


def factor_gradients(of_scale: torch.Tensor, of_zero: torch.Tensor, scale: torch.Tensor, ends: Ends, low: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of f_L and f_U, [R, G], from those of s and z; `low` is L."""
    through = of_scale + of_zero * low / scale.square()
    return (-through / ends.steps - of_zero / scale) * ends.low, through / ends.steps * ends.high


def shifted(ends: Ends, lower: torch.Tensor, upper: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """L and s under factors."""
    low = ends.low * lower
    return low, (ends.high * upper - low) / ends.steps
