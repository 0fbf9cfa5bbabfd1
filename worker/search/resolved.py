"""A choice as an ordinary recipe: for each option its steps, whose targets are the names of the tensors that take it."""

from __future__ import annotations

import math
import re

import re2

from app.patterns import wild
from worker.search.groups import Group
from worker.search.options import PRICED, Option

_NAMES = 1000  # targets of one step
_STEPS = 300  # of groups with a step of their own; more share one for each price


def resolved(chosen: list[tuple[Group, Option, int]], output: str, changes: dict | None = None) -> dict:
    """`{"steps": [...]}` for `app.recipe.parse_recipe`.

    Args:
        chosen: each group with its option and, of one with a price, the bits that it asks for (`worker.search.encoding.asked_bits`).
        changes: fields that every step of uniform quantization gets.
    """
    steps: dict[tuple, tuple[dict, list[str]]] = {}
    priced: dict[object, list[tuple[Group, int]]] = {}
    many = sum(option.price is not None for _, option, _ in chosen) > _STEPS
    for group, option, bits in chosen:
        if option.price is not None:
            priced.setdefault(option.price if many else group.name, []).append((group, bits))
        for step in option.steps:
            own = step.model_dump(mode="json", exclude_defaults=True) | ((changes or {}) if step.method == "quantize" and step.mapping == "uniform" else {})
            steps.setdefault((step.method, repr(own)), (own, []))[1].extend(group.names)
    for key, members in priced.items():
        bits = sum(n for _, n in members) / sum(g.count for g, _ in members)
        own = PRICED.model_dump(mode="json", exclude_defaults=True) | {"avg_bits": min(8.0, max(1.0, math.ceil(bits * 1e4) / 1e4))}
        steps["quantize", f"{key}"] = own, [n for g, _ in members for n in g.names]
    ordered = sorted(steps.values(), key=lambda s: s[0]["method"] != "prune")
    if output == "packed":
        ordered.append(({"method": "lossless"}, [n for g, _, _ in chosen for n in g.names]))
    return {"steps": [step | {"targets": part} for step, names in ordered for part in _parts(list(map(pattern, names)))]}


def _parts(names: list[str]) -> list[list[str]]:
    return [names[i : i + _NAMES] for i in range(0, len(names), _NAMES)]


def pattern(name: str) -> str:
    """What matches a tensor's name and nothing else."""
    return f"re:{re2.escape(name)}" if wild(name) or re.search(r"[(){}\\^$|+]", name) else name
