"""Experts of a mixture that a checkpoint holds in one tensor of rank 3: which tensors these are, and which of their axes are inputs.

    [E, out, in]    y = x W[e]^T    most models, and what transformers runs
    [E, in, out]    y = x W[e]      gpt-oss, Llama 4, Aria, Qwen3-VL-MoE

What goes into an expert is as wide as what comes out of it, and what its first matrix gives (once or, with a gate, twice) is what its last one takes: of the
two orders the one under which that holds for the matrices of one module, else the one under which config.json's hidden size is where it belongs. Where neither
tells, [E, out, in] is taken, and said. A wrong guess shares scales along the other axis and changes nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from app.outline import TensorSpec

_INSIDE = re.compile(r"(^|[._])experts?[._]|moe[._]", re.IGNORECASE)
_CONVOLUTION = re.compile(r"conv\d*(d|s|_\w+)?\.(\d+\.)*weight$", re.IGNORECASE)  # of rank 3, too
_FIRST = "gate_up_proj|gate_and_up_proj|up_gate_proj|gate_proj|up_proj|w13|w1|w3|v1|fc1|fc3|wi|wi_0|wi_1|input_linear|linear_fc1"
_LAST = "down_proj|w2|fc2|wo|output_linear|linear_fc2"
_MATRIX = re.compile(rf"^(?P<module>(?:.*\.)?)(?:(?P<first>{_FIRST})|(?P<last>{_LAST}))s?([._]weight)?$")
_TELLING = 128  # characters at a name's end
_HIDDEN = ("hidden_size", "d_model", "n_embd", "dim")
ASSUMED = "neither shapes nor config.json tell which of its axes are inputs: the last one was taken"


class Stack(NamedTuple):
    """Args:
    experts: how many.
    transposed: stored [E, in, out].
    known: named as a projection of experts.
    told: whether the order of its axes is known.
    """

    experts: int
    transposed: bool
    known: bool
    told: bool


def stacks(tensors: Mapping[str, TensorSpec], config: dict | None) -> dict[str, Stack]:
    """The tensors that hold all experts of a layer."""
    inside = {name: _MATRIX.match(name) for name, spec in tensors.items() if len(spec.shape) == 3 and _INSIDE.search(name) and not _CONVOLUTION.search(name, max(0, len(name) - _TELLING))}
    modules: dict[str, tuple[set, set]] = {}
    for name, found in inside.items():
        if found:
            modules.setdefault(found["module"], (set(), set()))[0 if found["first"] else 1].add(tensors[name].shape)
    hidden = set(_hidden_sizes(config or {}))
    out = {}
    for name, found in inside.items():
        count, *axes = tensors[name].shape
        turned = _by_module(*modules[found["module"]]) if found else None
        if turned is None and found and len(at := [axis for axis in (0, 1) if axes[axis] in hidden]) == 1:
            turned = at[0] == (0 if found["first"] else 1)
        out[name] = Stack(count, bool(turned), found is not None, turned is not None)
    return out


def _by_module(firsts: set[tuple[int, ...]], lasts: set[tuple[int, ...]]) -> bool | None:
    """Whether matrices are [in, out]; None where they may be either."""
    pairs = [(first[1:], last[1:]) for first in firsts for last in lasts]
    straight = all(b == c and a in (d, 2 * d) for (a, b), (c, d) in pairs)
    turned = all(a == d and b in (c, 2 * c) for (a, b), (c, d) in pairs)
    return turned if straight != turned else None


def _hidden_sizes(config: dict) -> Iterator[int]:
    """Of the parts of a config that have experts, else of the whole."""
    parts = [part for part in config.values() if isinstance(part, dict) and any("expert" in key for key in part)] or [config]
    return (part[key] for part in parts for key in _HIDDEN if type(part.get(key)) is int)
