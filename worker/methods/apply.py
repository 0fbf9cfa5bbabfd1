"""One tensor through the steps of its plan. Pure: the input is never written to."""

from __future__ import annotations

import torch

from app.errors import InputRefused
from app.recipe import Lossless, Prune, Quantize, Recipe
from worker.checkpoint import Checkpoint
from worker.encoded import Encoded
from worker.methods import lossless, prune, quantize  # noqa: F401 - registered by import
from worker.methods.registry import METHODS
from worker.methods.targets import TensorPlan


def prepare(checkpoint: Checkpoint, recipe: Recipe, plans: dict[str, TensorPlan]) -> None:
    """What a step must know of the whole model before the first tensor."""
    for step in recipe.step(Prune):
        prune.prepare(checkpoint, step, plans)


def apply(plan: TensorPlan, tensor: torch.Tensor) -> Encoded:
    """The tensor after its steps.

    Raises:
        InputRefused: `non-finite` for NaN or infinity in a tensor that a strict step quantizes.
    """
    encoded = Encoded(plan.spec, "copied", tensor, plan.reason)
    changing = [s for s in plan.steps if not isinstance(s, Lossless)]
    if changing and not prune.finite(tensor):
        if any(isinstance(s, Quantize) and s.strict for s in changing):
            raise InputRefused("non-finite", f"{plan.spec.name} holds NaN or infinite values, and the step is strict")
        encoded = Encoded(plan.spec, "copied", tensor, "it holds NaN or infinite values")
        changing = []
    for step in plan.steps:
        if step in changing or isinstance(step, Lossless):
            encoded = METHODS[type(step)](plan, step, encoded)
    return encoded
