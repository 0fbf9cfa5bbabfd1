"""Experts that a checkpoint holds in one tensor of rank 3, as layers of their own, so that what goes into each can be watched.

    routed    each token is sent to some experts, whose answers are summed up         most models
    sorted    every expert is given a row for each token, of zeros where it is none   Llama 4

A module is taken apart only where what its experts say one by one is what it says itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn

from worker.runnable.experts import Experts, alike, linear, placed
from worker.runnable.turned import held

_FIRST, _LAST = ("gate_up_proj", "up_proj"), "down_proj"


class Expert(nn.Module):
    """last(gated(first(x)))."""

    def __init__(self, first: nn.Linear, last: nn.Linear, gated: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.first, self.last, self.gated = first, last, gated

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.gated(self.first(x)))


class Sorted(Experts):
    """Hidden states [E * T, H], those of one expert after another; rows of zeros are passed over."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        x, out = hidden_states.unflatten(0, (len(self.experts), -1)), []
        for expert, rows in zip(self.experts, x, strict=True):
            token = rows.any(-1).nonzero()[:, 0]
            placed(expert, token, len(rows))
            out.append(torch.zeros_like(rows).index_copy(0, token, expert(rows[token])) if len(token) else torch.zeros_like(rows))
        return torch.cat(out)


def unstack(module: nn.Module, stacked: Mapping[nn.Parameter, bool]) -> dict[nn.Parameter, list[nn.Parameter]]:
    """Change the network in place.

    Args:
        stacked: parameters [E, ...] -> whether they are [E, in, out].

    Returns:
        by each of those that were taken apart the weights [out, in] of its experts, on its memory. Others stay as they are.
    """
    found: dict[nn.Parameter, list[nn.Parameter]] = {}
    for parent, attribute, fused in list(_fused(module)):
        first, last = stacked_weights(fused)
        if first not in stacked and last not in stacked:
            continue
        split = next((s for s in _candidates(fused, first, last, stacked.get(first, stacked.get(last))) if _same(fused, s)), None)
        if split is not None:
            setattr(parent, attribute, split)
            found |= {first: [e.first.weight for e in split.experts], last: [e.last.weight for e in split.experts]}
    return {parameter: weights for parameter, weights in found.items() if parameter in stacked}


def _stack(module: nn.Module, name: str) -> bool:
    return getattr(getattr(module, name, None), "ndim", 0) == 3


def stacked_weights(module: nn.Module) -> list[nn.Parameter]:
    """The first and the last matrices of the experts that a module holds in tensors of rank 3; empty of other modules."""
    first = next((held(module, name) for name in _FIRST if _stack(module, name)), None)
    return [first, held(module, _LAST)] if first is not None and _stack(module, _LAST) else []


def _fused(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for parent in module.modules():
        for attribute, child in parent.named_children():
            if stacked_weights(child):
                yield parent, attribute, child


def _candidates(fused: nn.Module, first: nn.Parameter, last: nn.Parameter, turned: bool) -> Iterator[Experts]:
    """What the module may be, by how its weights are stored and how it gates."""
    biases = [getattr(fused, f"{name}_bias", None) for name in (next(n for n in _FIRST if _stack(fused, n)), _LAST)]
    for way in dict.fromkeys((getattr(fused, "is_transposed", turned), turned)):
        layers = [[linear(w.T if way else w, None if b is None else b.data[i]) for i, w in enumerate(p.data)] for p, b in zip((first, last), biases, strict=True)]
        if layers[0][0].in_features != layers[1][0].out_features:
            continue
        for gated in _gates(fused):
            for cls in (Experts, Sorted):
                yield cls(Expert(a, b, gated) for a, b in zip(*layers, strict=True))


def _gates(fused: nn.Module) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    act = getattr(fused, "act_fn", None)
    if own := getattr(fused, "_apply_gate", None):
        yield own
    elif act is not None:
        yield lambda x: act(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1]
    if act is not None and not getattr(fused, "has_gate", True):
        yield act


@torch.no_grad()
def _same(fused: nn.Module, split: Experts) -> bool:
    width = split.experts[0].first.in_features
    try:
        if type(split) is Experts:
            return alike(fused, split, width)
        x = torch.sin(torch.arange(3.0 * len(split.experts) * width, device=split.experts[0].first.weight.device)).reshape(-1, width)
        x[::3] = 0
        return torch.allclose(fused(x), split(x), rtol=1e-3, atol=1e-4)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):  # it takes other arguments, or has no such gate
        return False
