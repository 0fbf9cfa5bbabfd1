"""One tensor through the steps of its plan, on the device of the job. Pure: the input is never written to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from app.errors import InputRefused
from app.recipe import Lossless, Prune, Quantize, Recipe, Step
from worker.allotment import allot
from worker.checkpoint import Checkpoint
from worker.devices import CPU
from worker.encoded import Encoded
from worker.kernels import native
from worker.methods import lossless, prune, quantize  # noqa: F401 - registered by import
from worker.methods.registry import METHODS
from worker.plan import TensorPlan

if TYPE_CHECKING:
    from worker.statistics import Statistics

_PART = 1 << 20


def prepare(
    checkpoint: Checkpoint,
    recipe: Recipe,
    plans: dict[str, TensorPlan],
    device: torch.device = CPU,
    checked: Callable[[TensorPlan], None] = lambda plan: None,
    statistics: Statistics | None = None,
) -> None:
    """What must be known of the whole model before the first tensor: which tensors are finite, the thresholds of a global scope, and who gets
    how many of the bits of a step.

    Args:
        checked: told of each tensor that was looked at.
        statistics: of the gradients, for the steps that ask for them; held against the model before.

    Raises:
        InputRefused: `non-finite`, for a tensor that a strict step would change.
    """
    for name, plan in plans.items():
        changing = [s for s in plan.steps if not isinstance(s, Lossless)]
        if changing and not finite(checkpoint.read(name)):
            if any(getattr(s, "strict", False) for s in changing):
                raise InputRefused("non-finite", f"{name} holds NaN or infinite values, and the step is strict")
            plan.steps = [s for s in plan.steps if s not in changing]
            plan.reason, plan.notes = "it holds NaN or infinite values", ()
        plan.statistics = statistics
        plan.steps = [prune.by_magnitude(plan, s) if isinstance(s, Prune) else s for s in plan.steps]
        checked(plan)
    for step in (s for s in recipe.step(Prune) if not s.gradual):
        prune.find_threshold(checkpoint, step, plans, device)
    for step in recipe.step(Quantize):
        if step.avg_bits is not None and (chosen := [plan for plan in plans.values() if step in plan.steps]):
            allot(step, chosen, lambda plan, step=step: _until(step, plan, checkpoint.read(plan.spec.name).to(device)))


def finite(t: torch.Tensor) -> bool:
    if native.takes(t):
        return native.finite(t)
    return all(bool(torch.isfinite(part).all()) for part in t.reshape(-1).split(_PART))


def apply(plan: TensorPlan, tensor: torch.Tensor, device: torch.device = CPU) -> Encoded:
    """The tensor after its steps: taken to `device` where one of them changes it, computed there, and brought back."""
    changing = any(not isinstance(s, Lossless) for s in plan.steps)
    return _until(None, plan, tensor.to(device) if changing else tensor).to(tensor.device)


def _until(last: Step | None, plan: TensorPlan, tensor: torch.Tensor) -> Encoded:
    """The tensor after the steps before `last`."""
    encoded = Encoded(plan.spec, "copied", tensor, plan.reason, notes=plan.notes)
    for step in plan.steps:
        if step == last:
            break
        encoded = METHODS[type(step)](plan, step, encoded)
    return encoded
