"""Which recipe is worth trying next: after one whose result misses a gate, and after an estimate. A rule, not a promise: the next result is judged anew.

    misses a bound on quality   what costs no bytes comes first: a searched scale, then what the data or gradients know; then a bit more, or fewer zeros
    misses max_bytes            entropy coding first, which loses nothing; then a bit less, or more zeros
    misses neither              what costs no bytes, if there is something left of that

Beside it stands the search that finds out by itself: `auto` with the bound as its budget.
"""

from __future__ import annotations

from typing import Any

from app.budget import ON_OUTPUTS
from app.errors import ModelpressError
from app.recipe import Lossless, Prune, Quantize, Recipe, Step, parse_recipe

_SPARSER, _DENSER = 0.5, 1.5
"""What the share of weights that stay is multiplied by."""


def after(judged: dict[str, dict], recipe: Recipe, output: str, data: bool) -> dict[str, Any] | None:
    """What to try after a result that misses gates.

    Args:
        judged: gates as `app.gates.judge` tells them.
        data: whether calibration data or gradients are there.

    Returns:
        `{why, recipe, auto}`: a sentence, and two choices, of which one may be None; None where no gate is missed, or nothing is known.
    """
    missed = [gate for gate, j in judged.items() if not j["passed"] and j["value"] is not None]
    if not missed or recipe.kind == "restore":
        return None
    size = "max_bytes" in missed
    found = _smaller(recipe, output) if size else _free(recipe, output, data) or _wider(recipe, output)
    bounds = {g: j["limit"] for g, j in judged.items() if g in ("max_bytes", "max_relative_error") or (g in ON_OUTPUTS and data)}
    auto = {"preset": "auto", "budget": bounds} if bounds and recipe.kind == "lossy" and output in ("packed", "compressed-tensors") else None
    if found is None and auto is None:
        return None
    why, steps = found or ("no recipe of these steps goes further", None)
    return {"why": f"{', '.join(missed)} missed: {why}", "recipe": steps and _told(steps), "auto": auto}


def beside(recipe: Recipe, output: str, data: bool, bytes_after: int, max_bytes: int | None) -> dict[str, Any] | None:
    """What to try in the place of a recipe that is only estimated. The same, where nothing was judged: of too many bytes, else of what costs none."""
    if max_bytes is not None and bytes_after > max_bytes:
        return after({"max_bytes": {"limit": max_bytes, "value": bytes_after, "passed": False}}, recipe, output, data)
    found = _free(recipe, output, data)
    return found and {"why": found[0], "recipe": _told(found[1]), "auto": None}


def given(spec: dict) -> bool:
    """Whether a job, as JSON, brings data to go by."""
    return bool(spec.get("calibration") or spec.get("gradients"))


def _told(steps: list[Step]) -> dict:
    return {"steps": [s.model_dump(mode="json", exclude_defaults=True) for s in steps]}


def _free(recipe: Recipe, output: str, data: bool) -> tuple[str, list[Step]] | None:
    """What is better at the same size."""
    for i, step in enumerate(recipe.steps):
        if isinstance(step, Quantize) and step.mapping == "uniform" and step.type != "float" and step.scale_search == "absmax" and step.num_bits and step.num_bits < 8:
            if found := _with(recipe, i, "the scale is not searched yet, which costs no bytes", scale_search="mse"):
                return found
        if isinstance(step, Prune) and step.saliency == "magnitude" and data:
            return _with(recipe, i, "weights are pruned by their size, and the data know better", saliency="fisher")
    if output == "packed" and recipe.kind == "lossy" and not recipe.step(Lossless):
        return _coded(recipe)
    return None


def _wider(recipe: Recipe, output: str) -> tuple[str, list[Step]] | None:
    """More bits, or fewer zeros: of the step that takes most away."""
    for i, step in reversed(list(enumerate(recipe.steps))):
        if isinstance(step, Quantize):
            if step.avg_bits is not None and step.avg_bits < 8:
                return _with(recipe, i, "half a bit more for each weight", avg_bits=min(8.0, step.avg_bits + 0.5))
            if step.num_bits and step.num_bits < 8:
                wider = 8 if output == "compressed-tensors" and step.num_bits >= 4 else step.num_bits + 1
                if found := _with(recipe, i, f"{wider} bits for a weight", num_bits=wider):
                    return found
        if isinstance(step, Prune) and step.structure[0] != "n:m" and step.sparsity > 0:
            return _with(recipe, i, "fewer zeros", sparsity=round(max(0.0, 1 - (1 - step.sparsity) * _DENSER), 4))
    return None


def _smaller(recipe: Recipe, output: str) -> tuple[str, list[Step]] | None:
    if output == "packed" and recipe.kind == "lossy" and not recipe.step(Lossless):
        return _coded(recipe)
    for i, step in reversed(list(enumerate(recipe.steps))):
        if isinstance(step, Quantize):
            if step.avg_bits is not None and step.avg_bits > 1:
                return _with(recipe, i, "half a bit less for each weight", avg_bits=max(1.0, step.avg_bits - 0.5))
            if step.num_bits and step.num_bits > 2:
                less = 4 if step.num_bits == 8 else step.num_bits - 1
                if found := _with(recipe, i, f"{less} bits for a weight", num_bits=less, scale_search="mse" if step.mapping == "uniform" else step.scale_search):
                    return found
        if isinstance(step, Prune) and step.structure[0] != "n:m" and output == "packed":
            return _with(recipe, i, "more zeros", sparsity=round(1 - (1 - step.sparsity) * _SPARSER, 4))
    if recipe.kind == "lossless":
        return "coding alone does not go further: 8 bits for a weight", [Quantize(method="quantize", num_bits=8), Lossless(method="lossless")]
    return None


def _coded(recipe: Recipe) -> tuple[str, list[Step]]:
    return "entropy coding takes fewer bytes for the same values", [*recipe.steps, Lossless(method="lossless")]


def _with(recipe: Recipe, i: int, why: str, **changes) -> tuple[str, list[Step]] | None:
    """The recipe with another step `i`; None where such a step may not be."""
    steps = [s.model_dump(mode="json", exclude_defaults=True) for s in recipe.steps]
    try:
        return why, list(parse_recipe({"steps": [*steps[:i], steps[i] | changes, *steps[i + 1 :]]}).steps)
    except ModelpressError:
        return None
