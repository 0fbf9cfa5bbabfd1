"""What the preset `auto` would give, before it has searched: told by recipes of one width for all, since a search finds a mixture of them.

    size        the widest of them that keeps to it is what the result is at least as good as; the search fills what there is room for
    quality     the width that had such a figure elsewhere (`_REACHED`); how far off that is for another model nobody knows, so the interval is wide
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from functools import cache

from app import budget as budgets
from app import speeds
from app.errors import BudgetNotMet
from app.job_spec import JobSpec
from app.outline import Outline
from app.recipe import Auto, parse_recipe
from app.steps.quantize import STEPS

_WIDTHS = range(2, 9)
_REACHED = {
    "min_cosine": (0.87, 0.96, 0.988, 0.997, 0.999, 0.9995, 0.9999),
    "max_kl": (0.7, 0.15, 0.045, 0.013, 0.0035, 0.001, 0.0003),
    "max_relative_error": (0.45, 0.25, 0.13, 0.07, 0.036, 0.019, 0.01),
}
"""The figures of each width: MiniLM's cosine, the KL of a small Llama, and what is right for weights as training leaves them."""
_FURTHER = 0.6  # of what two bits take: as far as codebooks and pruning go
_FILLED = 0.99  # of what there is room for
_OFF = 2  # bits by which the width that has a quality may be another


def foreseen(model: Outline, spec: JobSpec, estimated: Callable[[JobSpec], dict]) -> dict:
    """The answer of an estimate.

    Args:
        spec: of a job that searches.
        estimated: the answer for another job on the same model.

    Raises:
        BudgetNotMet: compressed-tensors, where nothing is smaller than two bits for all, takes more.
    """
    asked, (step,) = budgets.bounds(spec.budget.model_dump()), spec.recipe.steps
    of = cache(lambda bits: estimated(spec.model_copy(update={"recipe": parse_recipe({"steps": _steps(step, bits, spec.output.format)}), "budget": None})))
    room = min((_room(name, asked[name], of(2), model) for name in budgets.SIZE if name in asked), default=math.inf)
    fit = bisect_right(_WIDTHS, room, key=lambda bits: of(bits)["bytes_after"])  # how many do
    if not fit and spec.output.format == "compressed-tensors":
        name = next(name for name in budgets.SIZE if name in asked)
        nearest = budgets.held({name: 0}, _rows(of(2), model), of(2), {})[name]["value"]
        raise BudgetNotMet(f"the smallest that auto chooses has {name} {nearest:.6g}, the budget is {asked[name]:g}", pointer=f"/budget/{name}", nearest={name: nearest})
    if any(name in _REACHED for name in asked):
        good = [bits for i, bits in enumerate(_WIDTHS) if all(_good(name, _REACHED[name][i], limit) for name, limit in asked.items() if name in _REACHED)]
        width = good[0] if good else _WIDTHS[-1]
        least, after, most = (of(min(max(width + more, 2), 8)) for more in (-_OFF, 0, _OFF))
        sizes = least["bytes_least"], after["bytes_after"], most["bytes_most"]
        said = f"others had such a quality at {width} bits; when this one has it is known once it has run" + ("" if good and width in _WIDTHS[:fit] else ": it may be that the budget cannot be met")
    else:
        width = _WIDTHS[fit - 1] if fit else 2
        sizes = of(width)["bytes_least"] * (1 if fit else _FURTHER), min(room * _FILLED, of(8)["bytes_after"]), of(8)["bytes_most"]
        said = f"{width} bits for all are foreseen to take {of(width)['bytes_after']:,} bytes, " + ("and are the least that is found" if fit else "more than there is room for: that takes codebooks or pruning")
    least, after, most = sizes[0], min(sizes[1], room), min(sizes[2], room)
    plain = of(width)
    told = {"bytes_least": math.floor(min(least, after)), "bytes_after": round(after), "bytes_most": math.ceil(max(after, most)), "exact": False, "files": [], "actions": {}, "tensors": []}
    told |= {"ratio": round(plain["bytes_before"] / max(1, after), 4), "basis": "sample" if plain["basis"] == "sample" else "headers"}
    told |= {"seconds": round(plain["seconds"] + _seconds(spec, step) * plain["bytes_before"], 1), "seconds_basis": "default", "scratch_bytes": plain["bytes_before"] + math.ceil(max(after, most))}
    beside = {"why": f"{width} bits for all, which takes no search", "recipe": {"steps": _steps(step, width, spec.output.format)}, "auto": None}
    return plain | told | {"next": beside, "notes": [said, *plain["notes"]]}


def _steps(step: Auto, bits: int, output: str) -> list[dict]:
    """One width for all, in the output that is asked for."""
    where = step.model_dump(include={"targets", "ignore"}, exclude_defaults=True)
    return [{"method": "quantize", "num_bits": bits, "scale_search": "mse"} | where] + ([{"method": "lossless"} | where] if output == "packed" else [])


def _rows(plain: dict, model: Outline) -> list[dict]:
    return [row | {"shape": model.tensors[row["name"]].shape} for row in plain["tensors"]]


def _room(name: str, limit: float, plain: dict, model: Outline) -> float:
    """Bytes of all files. Args: plain: of one width, which tells what is worked on and what is beside it."""
    if name == "max_bytes":
        return limit
    if name == "ratio":
        return plain["bytes_before"] / limit
    changed = [row for row in _rows(plain, model) if row["action"] == "quantized"]
    return plain["bytes_after"] - sum(row["bytes_after"] for row in changed) + limit * sum(math.prod(row["shape"]) for row in changed) / 8


def _good(name: str, value: float, limit: float) -> bool:
    return value >= limit if name == "min_cosine" else value <= limit


def _seconds(spec: JobSpec, step: Auto) -> float:
    """Of a search, for each byte."""
    if spec.calibration is None:
        return speeds.METHODS["auto"]
    return speeds.STAGES["calibrate"] + speeds.STAGES["search"] + (2 * STEPS * speeds.LEARN if step.rounding == "autoround" else 0)
