"""Experts of one tensor that a checkpoint holds [E, in, out] and the network runs as [E, out, in] (Qwen3-VL-MoE), or the other way round.

The parameter then is what the checkpoint holds, and the network runs its transpose, so that values, gradients and new values are the checkpoint's.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn
from torch.nn.utils import parametrize


class _Turned(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2)

    def right_inverse(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2).contiguous()


def turned(shape: tuple[int, ...], own: tuple[int, ...]) -> bool:
    """Whether a tensor of rank 3 has the shape of a parameter the other way round, and not as it is."""
    return len(shape) == 3 == len(own) and shape != own and shape == (own[0], own[2], own[1])


def turn(module: nn.Module, wanted: Collection[nn.Parameter]) -> dict[nn.Parameter, nn.Parameter]:
    """Put parameters into the network that are the transposes of these. Returns the new ones by those that they replace."""
    places = [(m, name, p) for m in module.modules() for name, p in m.named_parameters(recurse=False) if any(p is one for one in wanted)]
    found = {}
    for owner, name, parameter in places:
        parametrize.register_parametrization(owner, name, _Turned())
        found[parameter] = held(owner, name)
        found[parameter].requires_grad_(False)
    return found


def held(module: nn.Module, name: str) -> nn.Parameter:
    """The parameter itself, where `turn` has been here too."""
    return module.parametrizations[name].original if parametrize.is_parametrized(module, name) else getattr(module, name)
