"""The plan of a job: what `app.targets` decides of each tensor, completed by how `packed` and compressed-tensors store its scales."""

from __future__ import annotations

from app.recipe import Recipe
from app.targets import FLOATING, treat
from worker.checkpoint import DTYPES, Checkpoint
from worker.plan import TensorPlan


def plan(checkpoint: Checkpoint, recipe: Recipe, output: str) -> dict[str, TensorPlan]:
    """A plan for every tensor, in the checkpoint's order.

    Raises: see `app.targets.treat`.
    """
    plans = {}
    cuts = {name: shrunk.cut for name, shrunk in checkpoint.shrunk.items()}
    for name, t in treat(checkpoint.tensors, checkpoint.config, recipe, output, cuts).items():
        scales = DTYPES[t.spec.dtype] if output == "compressed-tensors" and t.spec.dtype in FLOATING else None
        plans[name] = TensorPlan(t.spec, t.steps, t.reason, t.transposed, t.linear, t.notes, t.cut, t.experts, scale_dtype=scales)
    return plans
