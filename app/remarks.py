"""What is worth knowing of a recipe before its result is judged: said in the report of a job."""

from __future__ import annotations

from app.recipe import Prune, Recipe

_COLLAPSE = 0.5  # sparsity


def remarks(recipe: Recipe) -> list[str]:
    """One sentence each, with the step that it is about."""
    return [f"step {i} ({step.method}): {said}" for i, step in enumerate(recipe.steps) if isinstance(step, Prune) for said in _of_prune(step)]


def _of_prune(step: Prune) -> list[str]:
    out = []
    alone = step.structure[0] in ("unstructured", "n:m")
    if alone and step.saliency in ("magnitude", "fisher"):
        out.append(f"norms l1 and l2 give one mask here: they rank single weights by {step.saliency} alike")
    if (step.saliency, step.norm) == ("taylor", "l2"):
        out.append("taylor with l2 gives the mask of fisher with l1: both sum w^2 g^2")
    if (step.saliency, step.norm) == ("fisher", "l1") or (step.saliency == "fisher" and alone):
        out.append("fisher with l1 gives the mask of taylor with l2: both sum w^2 g^2")
    if step.saliency != "magnitude" and step.gradual:
        out.append("under a schedule gradients are running means of g^2 over the batches trained on, |g| their root: l1 is not a sum of |g| over samples")
    if step.saliency != "magnitude" and step.scope == "global" and step.structure[0] != "n:m" and step.sparsity >= _COLLAPSE:
        out.append("gradients differ in size from layer to layer, so that a global scope can empty whole layers at high sparsity; scope row does not")
    return out
