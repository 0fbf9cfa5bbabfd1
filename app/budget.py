"""Budgets of the preset `auto`: what the result may take, or how good it must be. All that is given holds at once.

    size       max_bytes   of all files            ratio      bytes before by bytes after, at least       avg_bits   stored for a weight that is worked on
    quality    min_cosine, max_kl                  what the model says to held-out calibration data
               max_relative_error                  of the worst tensor's weights

Within a size the best quality is looked for; where a quality is given, the smallest result that has it.
"""

from __future__ import annotations

import json
import math
from typing import Annotated

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from app.errors import BudgetNotMet, InvalidJobSpec, MalformedJson
from app.strict import Strict, parse_json

SIZE = ("max_bytes", "ratio", "avg_bits")
ON_OUTPUTS = ("min_cosine", "max_kl")
QUALITY = (*ON_OUTPUTS, "max_relative_error")


class Budget(Strict):
    """One or more bounds, see above. `ratio` and `avg_bits` count stored bytes, scales and codebooks included."""

    max_bytes: Annotated[int, Field(ge=1, lt=1 << 53)] | None = None
    ratio: Annotated[float, Field(gt=1, le=1000)] | None = None
    avg_bits: Annotated[float, Field(ge=0.5, le=16)] | None = None
    min_cosine: Annotated[float, Field(ge=-1, lt=1)] | None = None
    max_kl: Annotated[float, Field(gt=0)] | None = None
    max_relative_error: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _some(self):
        if not bounds(self.model_dump()):
            raise PydanticCustomError("budget", "a budget has one or more of: {names}", {"names": ", ".join((*SIZE, *QUALITY))})
        return self


def bounds(budget: dict | None) -> dict[str, float]:
    """Of a budget as JSON: what it bounds."""
    return {name: value for name, value in (budget or {}).items() if value is not None}


def given(texts: list[str]) -> dict[str, float]:
    """A budget as it is written on a command line: `ratio=4`, several of them, or `{"ratio": 4}`.

    Raises:
        InvalidJobSpec: it is neither. What the numbers may be is `Budget`'s.
    """
    found: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            one = parse_json(text.encode()) if text.lstrip().startswith("{") else {name: json.loads(value)}
        except (ValueError, MalformedJson):
            one = None
        if not isinstance(one, dict):
            raise InvalidJobSpec(f'a budget is NAME=NUMBER or {{"NAME": NUMBER}}, not {text[:100]}', pointer="/budget")
        found |= one
    return found


def held(budget: dict, rows: list[dict], totals: dict, quality: dict) -> dict[str, dict]:
    """Each bound with the value that a result has, `{bound: {limit, value, passed}}`.

    Args:
        budget: see `bounds`.
        rows, totals: of the result's report.
        quality: figures on outputs; a bound on one that is not there is left out.
    """
    values = {"max_bytes": totals["bytes_after"], "ratio": totals["bytes_before"] / max(1, totals["bytes_after"])}
    changed = [r for r in rows if r["action"] in ("quantized", "pruned")]
    count = sum(math.prod(r["shape"]) for r in changed)
    values["avg_bits"] = 8 * sum(r["bytes_after"] for r in changed) / max(1, count)
    errors = [r.get("relative_error") for r in changed]
    values["max_relative_error"] = None if None in errors else max(errors, default=0.0)
    values |= {"min_cosine": quality.get("cosine"), "max_kl": quality.get("kl")} if quality else {}
    out = {}
    for name, limit in budget.items():
        if name in values:
            value = values[name]
            passed = value is not None and (value >= limit if name in ("ratio", "min_cosine") else value <= limit)
            out[name] = {"limit": limit, "value": value, "passed": passed}
    return out


def enforce(judged: dict[str, dict]) -> None:
    """Raises:
    BudgetNotMet: naming the first bound that was missed.
    """
    for name, j in judged.items():
        if not j["passed"]:
            raise BudgetNotMet(f"{name} is {j['value']}, the budget {j['limit']}", pointer=f"/budget/{name}", nearest={name: j["value"]})
