"""What goes into the layers of the model as it is: second moments of some thousand tokens of `fit`, for a few groups at a time.

By them it is told what an error of some weights does to a layer's output, whatever the others do, and what is left of it when rounding makes up for its errors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch

from app.memory import TRIED
from worker.moments import Moments, Sum, has_moments
from worker.reconstruction.solving import FEWEST
from worker.search.effect import Effect
from worker.search.groups import Group

_TOKENS = 1 << 14


def rounds(found: list[Group], effect: Effect | None) -> Iterator[tuple[list[Group], Mapping[str, Sum]]]:
    """All groups, so many at a time that the moments of their layers take little memory, with the moments by the names of the weights. Of a layer that is too
    wide for that there are none, nor of experts in one tensor, nor without a model."""
    most = max(TRIED // 8, sum(g.count for g in found) // 3)  # of one layer, and rounding by them takes six times as much
    part, size = [], 0
    for group in found:
        own = sum(_size(p) for p in group.plans)
        if part and size + own > 2 * most:
            yield part, _seen(part, effect, most)
            part, size = [], 0
        part.append(group)
        size += own
    if part:
        yield part, _seen(part, effect, most)


def _size(plan) -> int:
    return 4 * plan.matrix_shape[1] ** 2


@torch.no_grad()
def _seen(part: list[Group], effect: Effect | None, most: int) -> dict[str, Sum]:
    if effect is None:
        return {}
    known = effect.model.parameters
    wanted = {known[p.spec.name]: p.spec.name for g in part for p in g.plans if p.spec.name in known and p.experts is None and _size(p) <= most}
    layers = [m for m in effect.model.module.modules() if has_moments(m) and m.weight in wanted]
    batch = None
    with Moments(layers, lambda: batch.mask) as moments:
        for batch in effect.some(_TOKENS, len(effect.data)):
            effect.model.forward(batch)
    found = {name: moments.of(weight) for weight, name in wanted.items()}
    return {name: seen for name, seen in found.items() if seen is not None and seen.tokens >= FEWEST and _sound(seen.gram)}


def _sound(gram: torch.Tensor) -> bool:
    return math.isfinite(trace := float(gram.double().diagonal().sum())) and trace > 0 and bool(torch.isfinite(gram).all())
