"""The search itself: what is known of all options is one table, and the recipe for a budget, or for one budget after another, is found by it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

from app import budget as budgets
from app.errors import BudgetNotMet, InputRefused
from app.recipe import Quantize, parse_recipe
from worker.devices import device_of
from worker.progress import Emit, Progress
from worker.samples import shared
from worker.search.bounds import Bounds
from worker.search.cache import Cache
from worker.search.choosing import Choice, Choosing
from worker.search.effect import Effect
from worker.search.encoding import asked_bits
from worker.search.groups import groups
from worker.search.options import Option, options
from worker.search.quality import Smallest
from worker.search.resolved import resolved
from worker.search.size import Best
from worker.search.table import Row, Table
from worker.search.trial import Carrying, Trial
from worker.statistics import beside

_SHARES = {"open": 0.02, "base": 0.05, "look": 0.2, "measure": 0.35, "verify": 0.13, "trial": 0.25}
WEIGHTS_ONLY = "there is no calibration data: what was chosen loses least by the error of its weights, which does not predict what the model then says"
BY_GRADIENTS = "there is no calibration data: what was chosen loses least by the gradients that were given, and was not run"


class Search:
    """One model's. Made, it knows what every option takes and is foreseen to lose; `find` finds a recipe, as often as it is asked to.

    Attributes:
        trials: what was carried out for the budget at hand, with what it is.
        learns: whether the rounding of what is best is learned in the end.
    """

    def __init__(self, inp: Path, checkpoint, scratch: Path, spec: dict, emit: Emit):
        self.started, self.spec, self.checkpoint, self.output = time.monotonic(), spec, checkpoint, spec["output"]["format"]
        self.device = device_of(spec)
        self.progress = Progress(emit, "search", sum(s.nbytes for s in checkpoint.tensors.values()), sum(_SHARES.values()))
        self.seconds: dict[str, float] = {}
        given, self.statistics = spec.get("beside") or {}, beside(spec)
        self.effect: Effect | None = None
        if given.get("calibration"):
            self.effect = self.timed("open", lambda: Effect(inp, checkpoint, given, budgets.bounds(spec["budget"]), self.device))
        recipe = parse_recipe(spec["recipe"])
        self.learns = self.effect is not None and recipe.steps[0].rounding == "autoround"
        self.groups, self.notes = groups(checkpoint, recipe, self.output, self.statistics, self._share("open", self.progress.total))
        if not self.groups:
            raise InputRefused("non-finite", f"there is nothing to choose: {self.notes[0]}")
        if self.effect is None:
            self.notes.append(WEIGHTS_ONLY if self.statistics is None else BY_GRADIENTS)
        elif shared(len(self.effect.data)):
            self.notes.append("there are so few samples that what is chosen by is also what is verified by")
        self.names = [n for g in self.groups for n in g.names]
        self.weights = sum(g.count for g in self.groups)
        self.carrying = Carrying(inp, checkpoint, scratch, spec, self.device, self.statistics, self.effect)
        self.cache = Cache(checkpoint, self.output, self.device)
        self.fixed = self.timed("base", lambda: self.carrying.fixed(parse_recipe(self._base()), self.names))
        self._share("base", 1)(1)
        self.table = Table(checkpoint, self.output, self.device)
        known = self.statistics is not None
        tried, priced = options(self.output, known), known and self.output == "packed"
        self.timed("look", lambda: self.table.look(self.groups, tried, priced, self.effect, self._share("look", self.weights)))
        self._made = dict(self.seconds), time.monotonic() - self.started
        self._begin(budgets.bounds(spec["budget"]))

    def _begin(self, budget: dict[str, float]) -> None:
        self.seconds, self.started = dict(self._made[0]), time.monotonic() - self._made[1]  # as if there were no other budget
        self.bounds = Bounds(budget, self.weights, self.carrying.before)
        self.trials: list[tuple[str, Trial]] = []
        self.nearer = self.bounds.most_error  # what is asked of the errors that samples tell
        self.choosing: Choosing | None = None

    def _share(self, part: str, total: float) -> Callable[[float], None]:
        return lambda done: self.progress.add(0, _SHARES[part] * done / max(1, total))

    def timed(self, part: str, work: Callable):
        start = time.monotonic()
        try:
            return work()
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.monotonic() - start

    def find(self, budget: dict[str, float] | None = None) -> Trial:
        """The recipe, carried out once.

        Args:
            budget: another one than that of the job.

        Raises:
            BudgetNotMet: with the nearest budget that can be met as `nearest`.
        """
        if budget is not None:
            self._begin(budget)
        self._possible()
        bounds, room = self.bounds, self.bounds.room(self.fixed)
        self.choose()
        if (trial := self._smallest(room)) is not None:
            return trial
        if self.effect:
            target = room if math.isfinite(room) and not bounds.on_outputs else None
            self.timed("measure", lambda: self.table.measure(self.effect, target, bounds.most_error, self.cache, self._share("measure", self.weights)))
            self.choose()
            if bounds.on_size and not bounds.on_outputs and bounds.most_error is None:
                return Best(self).within(room)
        return Smallest(self).found(room)

    def _base(self) -> dict:
        """Eight bits for all, which changes what is searched and nothing else."""
        return resolved([(g, Option((Quantize(method="quantize", num_bits=8),)), 0) for g in self.groups], self.output)

    def _possible(self) -> None:
        """Raises: BudgetNotMet: some matrix has no option whose weights are near enough."""
        limit = self.bounds.most_error
        if lacking := [r for r in self.table.rows if not r.near(limit)]:
            nearest = max(min(r.told[i].error for i in r.near(math.inf)) for r in self.table.rows)
            why = f"of {lacking[0].group.names[0]} no option keeps the relative error to {limit:g}; the nearest is {nearest:.3g}"
            raise BudgetNotMet(why, pointer="/budget/max_relative_error", nearest={"max_relative_error": nearest})

    def _smallest(self, room: float) -> Trial | None:
        """Where there is less room than anything takes, as far as samples tell, the smallest of all, before anything is measured.

        Raises:
            BudgetNotMet: it is too large indeed.
        """
        choosing = self.choosing
        if room >= choosing.bytes(choosing.smallest()) - self.fixed:
            return None
        trial = self.carried(choosing, choosing.smallest(), "the smallest of all")
        self.bounds.refuse(trial, self.bounds.on_size, "the smallest that was found")
        return None if self.bounds.missed(trial) else trial

    def choose(self) -> None:
        """Make the choosers anew: of all options, and of those that can be verified one matrix at a time, without what is rounded by gptq."""
        rows = [r.only(r.near(self.nearer) or [min(range(len(r.told)), key=lambda i: r.told[i].error)]) for r in self.table.rows]
        plain = [r.only([i for i, o in enumerate(r.options) if not o.compensated]) for r in rows]
        self.choosing = Choosing(plain, self.fixed, self._verifier(plain) if self.effect else None)
        ints = [r.only([i for i, o in enumerate(r.options) if o.plain]) for r in rows]
        self.learned = Choosing(ints, self.fixed, self._verifier(ints)) if self.learns and all(r.options for r in ints) else None
        more = any(len(a.options) > len(b.options) for a, b in zip(rows, plain, strict=True))
        self.compensated = Choosing(rows, self.fixed, self._verifier(rows)) if more and self.effect else None

    def _verifier(self, rows: list[Row]) -> Callable[[Choice], tuple[float, dict]]:
        def verify(choice: Choice) -> tuple[float, dict]:
            with self.effect.changed() as values:
                for row, option in zip(rows, choice, strict=True):
                    for encoded in self.cache.all(row.group, row.options[option]):
                        values[encoded.spec.name] = encoded.dense
                figures = self.effect.held_out()
            return self.effect.lost(figures), figures

        def timed(choice: Choice) -> tuple[float, dict]:
            found = self.timed("verify", lambda: verify(choice))
            self._share("verify", 8)(1)
            return found

        return timed

    def carried(self, choosing: Choosing, choice: Choice, how: str, learned: bool = False) -> Trial:
        """A choice as a recipe, carried out from end to end. Args: learned: with all rounding of integers learned."""
        chosen = [(r.group, r.options[o]) for r, o in zip(choosing.rows, choice, strict=True)]
        recipe = resolved([(g, o, sum(map(asked_bits, self.cache.all(g, o))) if o.price is not None else 0) for g, o in chosen], self.output, learned)
        trial = self.timed("trial", lambda: self.carrying.out(recipe, self.names))
        if self.bounds.missed(trial):
            trial.forget()
        self.trials.append((f"{how}, rounding learned" if learned else how, trial))
        self._share("trial", 4)(1)
        return trial

    def lost(self, trial: Trial, otherwise: float = 0.0) -> float:
        """On held-out samples. Args: otherwise: where the model is not run."""
        return self.effect.lost(trial.quality) if self.effect else otherwise

    def room_beside(self, trial: Trial) -> float:
        """The same as `Bounds.room`, beside what all else takes in a trial."""
        return self.bounds.room(trial.totals["bytes_after"] - trial.bytes_of(self.groups))
