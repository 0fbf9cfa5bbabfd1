"""Mixtures of experts: transformers runs all experts of a layer by two tensors of rank 3, while most checkpoints hold every expert's matrices by themselves.

Where they do, the experts become layers again, so that each is seen, changed and put back under its own name like any other matrix.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import nn

_NUMBER = re.compile(r"(?:^|\.)experts\.(\d+)\.")
_PLAIN = {"has_gate": True, "has_bias": False, "is_transposed": False, "is_concatenated": True, "has_post_expert_norm": False}
"""What transformers says of experts (`use_experts_implementation`) whose sum is the one below."""


class Expert(nn.Module):
    """down(act(gate x) * up x), by the module's own way to gate."""

    def __init__(self, gate_up: torch.Tensor, down: torch.Tensor, gated: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        gate, up = gate_up.chunk(2)
        self.gate, self.up, self.down = linear(gate), linear(up), linear(down)
        self.gated = gated

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.gated(torch.cat([self.gate(x), self.up(x)], dim=-1)))


def linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> nn.Linear:
    """A layer on this very memory."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


class Experts(nn.Module):
    """In the place of the fused module: the same sum, expert by expert. Tokens of padding go to experts like others, but layers know which they are given."""

    def __init__(self, experts: Iterable[nn.Module]):
        super().__init__()
        for number, expert in enumerate(experts):  # no list of modules: those are taken for blocks
            self.add_module(str(number), expert)

    @property
    def experts(self) -> list[nn.Module]:
        return list(self.children())

    def forward(self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(hidden_states)
        for number, expert in enumerate(self.experts):
            token, place = torch.where(top_k_index == number)
            if len(token):
                placed(expert, token, len(hidden_states))
                out = out.index_add(0, token, (expert(hidden_states[token]) * top_k_weights[token, place, None]).to(out.dtype))
        return out


def placed(expert: nn.Module, token: torch.Tensor, count: int) -> None:
    """Tell the layers of an expert which of `count` tokens of a batch they are given, in their order (see `worker.moments.rows`)."""
    for layer in expert.children():
        layer.places = token, count


def unfuse(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, nn.Parameter]:
    """Change the network in place, where the checkpoint has its experts one by one and the sum above is what the network computes.

    Args:
        tensors: of the checkpoint, float32.

    Returns:
        the experts' parameters by the checkpoint's names.
    """
    named: dict[str, nn.Parameter] = {}
    by_start: dict[tuple, list[str]] = {}
    for name, t in tensors.items():
        if t.ndim == 2 and t.numel() and (number := _NUMBER.search(name)):
            by_start.setdefault(_start(int(number[1]), t), []).append(name)
    for parent, attribute, fused in list(_fused(module)) if by_start else ():
        split = Experts(Expert(gate_up.data, down.data, fused._apply_gate) for gate_up, down in zip(fused.gate_up_proj, fused.down_proj, strict=True))
        found = {}
        for number, expert in enumerate(split.experts):
            for layer in (expert.gate, expert.up, expert.down):
                near = by_start.get(_start(number, layer.weight), ()) if layer.weight.numel() else ()
                name = next((n for n in near if n not in found and n not in named and torch.equal(tensors[n], layer.weight)), None)
                if name is not None:
                    found[name] = layer.weight
        if len(found) == 3 * len(split.experts) and alike(fused, split, fused.down_proj.shape[1]):
            setattr(parent, attribute, split)
            named |= found
    return named


def _start(number: int, matrix: torch.Tensor) -> tuple:
    """What tells matrices of one expert's number apart, most often: not where rows begin with zeros, as those of a pruned model may."""
    return number, tuple(matrix.shape), tuple(matrix[0, :16].tolist())


def _fused(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for parent in module.modules():
        for attribute, child in parent.named_children():
            plain = all(getattr(child, key, None) == value for key, value in _PLAIN.items())
            if plain and all(getattr(getattr(child, part, None), "ndim", 0) == 3 for part in ("gate_up_proj", "down_proj")):
                yield parent, attribute, child


@torch.no_grad()
def alike(fused: nn.Module, split: Experts, width: int) -> bool:
    """On a few tokens of `width` numbers, each sent to two experts."""
    count = len(split.experts)
    device = next(split.parameters()).device
    x = torch.sin(torch.arange(4.0 * width, device=device)).reshape(4, width)
    index = torch.arange(8, device=device).reshape(4, 2) % count
    weights = torch.full((4, 2), 0.5, device=device)
    return torch.allclose(fused(x, index, weights), split(x, index, weights), rtol=1e-3, atol=1e-4)
