"""A choice as an ordinary recipe: for each option its steps, whose targets are the names of the tensors that take it."""

from __future__ import annotations

import math
import re

import re2

from app.patterns import wild
from app.recipe import Prune, Quantize
from worker.search.groups import Group
from worker.search.options import PRICED, Option

_NAMES = 1000  # targets of one step
_STEPS = 300  # of groups with a step of their own; more share one for each price


def resolved(chosen: list[tuple[Group, Option, int]], output: str, learned: bool = False) -> dict:
    """`{"steps": [...]}` for `app.recipe.parse_recipe`.

    Args:
        chosen: each group with its option and, of one with a price, the bits that it asks for (`worker.search.encoding.asked_bits`).
        learned: the rounding of all integers is, by `algorithm: autoround`.
    """
    steps: dict[tuple, tuple[dict, list[str]]] = {}
    priced: dict[object, list[tuple[Group, int]]] = {}
    many = sum(option.price is not None for _, option, _ in chosen) > _STEPS
    for group, option, bits in chosen:
        if option.price is not None:
            priced.setdefault(option.price if many else group.name, []).append((group, bits))
        for step in option.steps:
            own = _learned(step) if learned and _integers(step) else step.model_dump(mode="json", exclude_defaults=True)
            steps.setdefault((step.method, repr(own)), (own, []))[1].extend(group.names)
    for key, members in priced.items():
        bits = sum(n for _, n in members) / sum(g.count for g, _ in members)
        own = PRICED.model_dump(mode="json", exclude_defaults=True) | {"avg_bits": min(8.0, max(1.0, math.ceil(bits * 1e4) / 1e4))}
        steps["quantize", f"{key}"] = own, [n for g, _ in members for n in g.names]
    ordered = sorted(steps.values(), key=lambda s: s[0]["method"] != "prune")
    if output == "packed":
        ordered.append(({"method": "lossless"}, [n for g, _, _ in chosen for n in g.names]))
    return {"steps": [step | {"targets": part} for step, names in ordered for part in _parts(list(map(pattern, names)))]}


def _integers(step: Prune | Quantize) -> bool:
    return isinstance(step, Quantize) and step.mapping == "uniform" and step.type == "int"


def _learned(step: Quantize) -> dict:
    return step.model_dump(mode="json", exclude_defaults=True, exclude={"activation_order", "damping"}) | {"algorithm": "autoround"}


def _parts(names: list[str]) -> list[list[str]]:
    return [names[i : i + _NAMES] for i in range(0, len(names), _NAMES)]


def pattern(name: str) -> str:
    """What matches a tensor's name and nothing else."""
    return f"re:{re2.escape(name)}" if wild(name) or re.search(r"[(){}\\^$|+]", name) else name
