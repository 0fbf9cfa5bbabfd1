"""What a budget says of results: the room that it leaves, whether one keeps to it, and what is nearest where none does."""

from __future__ import annotations

import math
from collections.abc import Mapping

from app import budget as budgets
from app.errors import BudgetNotMet
from worker.search.trial import Trial

_STRICT = 0.85  # of what may be lost: what is less than that has more to give


class Bounds:
    """Args:
    budget: see `app.budget.bounds`.
    weights: that are searched.
    before: bytes of the input's files.
    """

    def __init__(self, budget: Mapping[str, float], weights: int, before: int):
        self.budget, self.weights, self.before = dict(budget), weights, before
        self.on_outputs = [name for name in budgets.ON_OUTPUTS if name in budget]
        self.on_size = [name for name in budgets.SIZE if name in budget]
        self.most_error: float | None = budget.get("max_relative_error")

    def room(self, fixed: float) -> float:
        """Bytes that what is searched may take together; infinite where no size is asked for. Args: fixed: bytes of the result beside it."""
        asked = [math.inf]
        if "max_bytes" in self.budget:
            asked.append(self.budget["max_bytes"] - fixed)
        if "ratio" in self.budget:
            asked.append(self.before / self.budget["ratio"] - fixed)
        if "avg_bits" in self.budget:
            asked.append(self.budget["avg_bits"] * self.weights / 8)
        return min(asked)

    def held(self, trial: Trial) -> dict[str, dict]:
        return budgets.held(self.budget, trial.rows, trial.totals, trial.quality)

    def missed(self, trial: Trial) -> list[str]:
        return [name for name, j in self.held(trial).items() if not j["passed"]]

    def good(self, figures: Mapping[str, float | None], slack: float) -> bool:
        """Whether figures on outputs keep to their bounds, with a part of what may be lost to spare."""
        return all(self._good(name, figures.get("cosine" if name == "min_cosine" else "kl"), slack) for name in self.on_outputs)

    def _good(self, name: str, value: float | None, slack: float) -> bool:
        limit = self.budget[name]
        if value is None:
            return False
        return 1 - value <= (1 - limit) * (1 - slack) if name == "min_cosine" else value <= limit * (1 - slack)

    def spare(self, trial: Trial) -> bool:
        """Whether a result is clearly better than asked for, so that a smaller one may do."""
        return self.good(trial.quality, 1 - _STRICT)

    def refuse(self, trial: Trial, names: list[str], what: str) -> None:
        """Raises: BudgetNotMet: the trial misses one of the bounds `names`. Args: what: the trial is."""
        held = self.held(trial)
        missed = [n for n in names if not held[n]["passed"]]
        if missed:
            name, nearest = missed[0], {n: held[n]["value"] for n in missed}
            size = f"; it takes {trial.totals['bytes_after']:,} bytes" if name in budgets.QUALITY else ""
            raise BudgetNotMet(f"{what} has {name} {held[name]['value']:.6g}, the budget is {held[name]['limit']:g}{size}", pointer=f"/budget/{name}", nearest=nearest)
