"""The queues of `compress`, and to which of them a job goes.

    compress.cpu    compress.cpu.large     computed on the CPU
    compress.gpu    compress.gpu.large     computed on a GPU

A job whose estimated peak of memory is above MODELPRESS_LARGE_MEMORY goes to the large one. A worker process takes those that MODELPRESS_QUEUES names.
"""

from __future__ import annotations

from app.config import settings
from app.recipe import Prune, Quantize, Recipe

CPU = ("compress.cpu.large", "compress.cpu")
GPU = ("compress.gpu.large", "compress.gpu")
ALL = (*GPU, *CPU)
"""The most specialised first."""


def served() -> tuple[str, ...]:
    """The queues of this worker process, the most specialised first.

    Raises:
        SystemExit: the setting names none, or one that is not known.
    """
    named = {name for part in settings().queues.split(",") if (name := part.strip())}
    if not named or not named <= set(ALL):
        wrong = ", ".join(sorted(named - set(ALL))) or "nothing"
        raise SystemExit(f"MODELPRESS_QUEUES names {wrong}; choose from {', '.join(reversed(ALL))}, with commas between them")
    return tuple(q for q in ALL if q in named)


def choose(device: str, recipe: Recipe, memory: int, gpu: bool) -> str:
    """The queue of a job. Entropy coding alone, restoring, and what is done to images and data sets without
    training, are computed on a CPU whatever is asked for: there is no other way to do them.

    Args:
        device: auto, cpu or cuda, as it was asked for.
        memory: estimated peak of the child, bytes.
        gpu: whether a worker with a GPU is there.
    """
    able = recipe.kind == "lossy" and (type(recipe) is Recipe or gains(recipe))
    on_gpu = able and (device == "cuda" or (device == "auto" and gpu and gains(recipe)))
    large, small = GPU if on_gpu else CPU
    return large if memory > settings().large_memory else small


def gains(recipe: Recipe) -> bool:
    """Whether a GPU may do more for this recipe than carrying bytes to it and back costs: where scales are searched, or units are compared and summed.
    Rounding to the nearest level is done as soon as the bytes are there."""
    return recipe.searches or any(q.scale_search != "absmax" for q in recipe.step(Quantize)) or bool(recipe.step(Prune)) or any(getattr(s, "gains_on_gpu", False) for s in recipe.steps)
