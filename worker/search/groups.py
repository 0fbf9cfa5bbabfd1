"""Which matrices are searched, and which of them take one and the same option because inference engines fuse them (`app.siblings`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from app.recipe import Recipe
from app.siblings import fused
from worker.checkpoint import Checkpoint
from worker.methods import plan
from worker.methods.apply import finite
from worker.plan import TensorPlan
from worker.statistics import Statistics, check


@dataclass(frozen=True)
class Group:
    """Args:
    plans: of its matrices, whose steps are still to be found.
    felt: whether the model's output is known to depend on it: gradients reach it. True where there are none.
    """

    name: str
    plans: tuple[TensorPlan, ...]
    felt: bool = True

    @property
    def count(self) -> int:
        """Weights."""
        return sum(math.prod(p.spec.shape) for p in self.plans)

    @property
    def names(self) -> list[str]:
        return [p.spec.name for p in self.plans]


def groups(checkpoint: Checkpoint, recipe: Recipe, output: str, statistics: Statistics | None, progress: Callable[[int], None]) -> tuple[list[Group], list[str]]:
    """Those of the model, in the order of its names, and what is to be said of what is not among them.

    Args:
        recipe: the `auto` step alone.
        progress: told of the bytes of each tensor.

    Raises:
        NoTensorMatched. InputRefused: what `worker.statistics.check` says.
    """
    plans = {name: p for name, p in plan(checkpoint, recipe.stand_in, output).items() if p.quantize is not None}
    broken = []
    for name, p in plans.items():
        if not finite(checkpoint.read(name)):
            broken.append(name)
        p.steps, p.notes, p.statistics = [], (), statistics
        progress(p.spec.nbytes)
    left = {name: p for name, p in plans.items() if name not in broken}
    unfelt = check(statistics, checkpoint, list(left)) if statistics is not None and left else frozenset()
    together: dict[str, list[TensorPlan]] = {}
    for name in sorted(left):
        together.setdefault(fused(name), []).append(left[name])
    found = [Group(name, tuple(members), any(p.spec.name not in unfelt for p in members)) for name, members in together.items()]
    notes = [f"{len(broken)} tensors hold NaN or infinite values and stay as they are, {broken[0]} first"] if broken else []
    if dull := [n for g in found if not g.felt for n in g.names]:
        notes.append(f"no gradient reaches {len(dull)} tensors ({dull[0]} first): the model's output does not depend on them, and the error of their weights decides")
    return found, notes
