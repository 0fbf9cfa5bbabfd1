"""The search stage of `auto`: find the recipe that keeps to a budget.

    inp/                 the model, read-only
    spec["beside"]       calibration, labels, gradients, statistics: whatever there is
    spec["budget"]       see `app.budget`
    out/search.json      {"recipe": {"steps": [...]}, "search": what is told of it in the report}
    out/report.json      of a budget that cannot be met: what was seen, and the nearest that can
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

from app import budget as budgets
from app.errors import BudgetNotMet, InputRefused
from app.recipe import Quantize, parse_recipe
from worker import report
from worker.devices import device_of
from worker.formats import open_checkpoint
from worker.progress import Emit, Progress
from worker.samples import shared
from worker.sanitize import sanitized
from worker.search.choosing import Choice, Choosing, Point, front
from worker.search.effect import Effect
from worker.search.encoding import asked_bits
from worker.search.groups import Group, groups
from worker.search.options import Option, options
from worker.search.resolved import resolved
from worker.search.table import Cache, Table
from worker.search.trial import Carrying, Trial
from worker.statistics import beside

NAME = "search.json"
_TRIALS = 4
_FULL, _LESS = 0.98, 0.998  # of what there is room for: enough, and how much of it is taken after it was too much
_SMALLER = 0.93  # of the bytes that have a quality, within which rounding by gptq is tried
_SPARE = 0.02  # of what may be lost, left after a quality was missed
_STRICT, _STRETCH = 0.85, 0.5  # of what may be lost: what is less than that has more to give; by how much more than asked for is foreseen then
_SHARES = {"open": 0.02, "base": 0.05, "look": 0.2, "measure": 0.45, "verify": 0.18, "trial": 0.1}
WEIGHTS_ONLY = "there is no calibration data: what was chosen loses least by the error of its weights, which does not predict what the model then says"
BY_GRADIENTS = "there is no calibration data: what was chosen loses least by the gradients that were given, and was not run"


def run(inp: Path, out: Path, spec: dict, emit: Emit) -> None:
    """Raises:
    BudgetNotMet: once the report is written. InputRefused, InvalidJobSpec, NoTensorMatched: what the model, the data or the budget are refused for.
    """
    scratch = out / "scratch"
    scratch.mkdir(parents=True)
    checkpoint = sanitized(open_checkpoint(inp, scratch), scratch, strip=spec["sanitize"] == "strip", whole_files=False)
    try:
        search = Search(inp, checkpoint, scratch, spec, emit)
        try:
            trial = search.find()
        except BudgetNotMet as e:
            document = {"version": 1, "recipe": spec["recipe"], "output": spec["output"], "search": search.told(None) | {"nearest": e.extra["nearest"]}}
            environment = {"environment": report.environment(search.device, search.effect is not None)}
            (out / "report.json").write_text(json.dumps(document | environment, allow_nan=False))
            raise
        (out / NAME).write_text(json.dumps({"recipe": trial.recipe, "search": search.told(trial)}, allow_nan=False))
    finally:
        checkpoint.close()


class Search:
    """One search; `find` does it, `told` says how it went."""

    def __init__(self, inp: Path, checkpoint, scratch: Path, spec: dict, emit: Emit):
        self.started, self.spec, self.checkpoint, self.output = time.monotonic(), spec, checkpoint, spec["output"]["format"]
        self.budget, self.device = budgets.bounds(spec["budget"]), device_of(spec)
        self.progress = Progress(emit, "search", sum(s.nbytes for s in checkpoint.tensors.values()), sum(_SHARES.values()))
        self.seconds: dict[str, float] = {}
        given, self.statistics = spec.get("beside") or {}, beside(spec)
        self.effect = None
        if given.get("calibration"):
            self.effect = self._timed("open", lambda: Effect(inp, checkpoint, given, self.budget, self.device))
        weights = self.progress.total
        recipe = parse_recipe(spec["recipe"])
        self.groups, self.notes = groups(checkpoint, recipe, self.output, self.statistics, self._share("open", weights))
        if not self.groups:
            raise InputRefused("non-finite", f"there is nothing to choose: {self.notes[0]}")
        if self.effect is None:
            self.notes.append(WEIGHTS_ONLY if self.statistics is None else BY_GRADIENTS)
        if self.effect is not None and shared(len(self.effect.data)):
            self.notes.append("there are so few samples that what is chosen by is also what is verified by")
        self.carrying = Carrying(inp, checkpoint, scratch, spec, self.device, self.statistics, self.effect)
        self.cache = Cache(checkpoint, self.output, self.device)
        self.table = Table(checkpoint, self.output, self.device)
        self.choosing: Choosing | None = None
        self.trials: list[tuple[str, Trial]] = []

    @property
    def names(self) -> list[str]:
        return [n for g in self.groups for n in g.names]

    @property
    def weights(self) -> int:
        return sum(g.count for g in self.groups)

    def _share(self, part: str, total: float) -> Callable[[float], None]:
        return lambda done: self.progress.add(0, _SHARES[part] * done / max(1, total))

    def _timed(self, part: str, work: Callable):
        start = time.monotonic()
        try:
            return work()
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.monotonic() - start

    def find(self) -> Trial:
        """The recipe, carried out once.

        Raises:
            BudgetNotMet: with the nearest budget that can be met as `nearest`.
        """
        fixed = self._timed("base", lambda: self.carrying.fixed(parse_recipe(self._base()), self.names))
        self._share("base", 1)(1)
        tried = options(self.output, self.statistics is not None)
        priced, most_error = self.output == "packed" and self.statistics is not None, self.budget.get("max_relative_error")
        self._timed("look", lambda: self.table.look(self.groups, tried, priced, most_error, self._share("look", self.weights)))
        self._possible(tried)
        room = self._room(fixed, self.carrying.before)
        if self.effect:
            wanted = not any(name in self.budget for name in budgets.ON_OUTPUTS)
            self._timed("measure", lambda: self.table.measure(self.effect, room if wanted and math.isfinite(room) else None, self.cache, self._share("measure", self.weights)))
        self.choosing = Choosing(self.table.rows, fixed, self._verify if self.effect else None)
        trial = self._settled(room)
        return self._compensated(trial) if self.effect else trial

    def _base(self) -> dict:
        """Eight bits for all, which changes what is searched and nothing else."""
        return resolved([(g, Option((Quantize(method="quantize", num_bits=8),)), 0) for g in self.groups], self.output)

    def _possible(self, tried: list) -> None:
        """Raises: BudgetNotMet: some matrix has no option whose weights are near enough."""
        if lacking := [r.group for r in self.table.rows if not r.options]:
            limit = self.budget["max_relative_error"]
            whole = Table(self.checkpoint, self.output, self.device)
            whole.look(lacking, tried, False, None, lambda n: None)
            nearest = max(min(t.error for t in r.told) for r in whole.rows)
            why = f"of {lacking[0].names[0]} no option keeps the relative error to {limit:g}; the nearest is {nearest:.3g}"
            raise BudgetNotMet(why, pointer="/budget/max_relative_error", nearest={"max_relative_error": nearest})

    def _room(self, fixed: float, before: int) -> float:
        """Bytes that the groups may take together; infinite where no size is asked for."""
        asked = [math.inf]
        if "max_bytes" in self.budget:
            asked.append(self.budget["max_bytes"] - fixed)
        if "ratio" in self.budget:
            asked.append(before / self.budget["ratio"] - fixed)
        if "avg_bits" in self.budget:
            asked.append(self.budget["avg_bits"] * self.weights / 8)
        return min(asked)

    def _verify(self, choice: Choice) -> tuple[float, dict]:
        plans = {p.spec.name: (p, r.options[o]) for r, o in zip(self.table.rows, choice, strict=True) for p in r.group.plans}
        start = time.monotonic()
        with self.effect.changed() as values:
            for name, (plan, option) in plans.items():
                values[name] = self.cache.one(plan, option).dense
            figures = self.effect.held_out()
        self.seconds["verify"] = self.seconds.get("verify", 0.0) + time.monotonic() - start
        self._share("verify", 8)(1)
        return self.effect.lost(figures), figures

    def _settled(self, room: float) -> Trial:
        """Choose and carry out; once more with other room where the result takes more or clearly less than was foreseen, or misses a quality by a little."""
        on_outputs = [name for name in budgets.ON_OUTPUTS if name in self.budget]
        good: list[tuple[float, float, Trial]] = []
        slack, foreseen, seen = 0.0, room, set()
        for _ in range(_TRIALS):
            try:
                point = self._chosen(foreseen, on_outputs, slack)
            except BudgetNotMet:
                if good:
                    break
                raise
            if point.choice in seen:
                break
            seen.add(point.choice)
            trial = self._carried(self._recipe(point.choice), point.how)
            missed = [name for name, j in self._held(trial).items() if not j["passed"]]
            took, size = trial.bytes_of(self.groups), trial.totals["bytes_after"]
            there = self._room(size - took, self.carrying.before)  # for the matrices, beside what all else has taken
            lost = self.effect.lost(trial.quality) if self.effect else point.lost
            if not missed:
                good.append((size, lost, trial) if on_outputs or math.isinf(there) else (lost, size, trial))
                if not self._strict(trial, on_outputs) if on_outputs else took > _FULL * there or math.isinf(there):
                    break
            if took > there or (not missed and not on_outputs):
                foreseen = there * (point.bytes - self.choosing.fixed) / took * (1 if took <= there else _LESS)
            if on_outputs and lost > 0:  # what is foreseen is a little off, by as much the next time
                slack = min(max(1 - point.lost / lost, -_STRETCH), 1 - _STRETCH / 5) + (_SPARE if any(name in missed for name in on_outputs) else 0)
            if "max_relative_error" in missed:
                self._tighten(self._held(trial)["max_relative_error"])
                seen.clear()
        if not good:
            budgets.enforce(self._held(trial))
        return min(good, key=lambda g: g[:2])[2]

    def _compensated(self, trial: Trial) -> Trial:
        """The trial, or one of scale factors alone whose rounding makes up for its own errors: where that keeps to the budget too and loses less or,
        where a quality is asked for, takes less. Its bytes are known once it is carried out, so it may have a second try."""
        quality = any(name in self.budget for name in budgets.QUALITY)
        took = trial.bytes_of(self.groups)
        there = took * _SMALLER if quality else max(took, self._room(trial.totals["bytes_after"] - took, self.carrying.before))
        room, best = there, trial
        for _ in range(2):
            choice = self.choosing.by_scales(room)
            if choice is None:
                break
            other = self._carried(self._recipe(choice, {"algorithm": "gptq"}), "scales, rounded by gptq")
            size, kept = other.bytes_of(self.groups), all(j["passed"] for j in self._held(other).values())
            better = size < best.bytes_of(self.groups) if quality else self.effect.lost(other.quality) < self.effect.lost(best.quality)
            if kept and better:
                best = other
            if kept and (size > _FULL * there or quality) or not size:
                break
            room *= there / size * (_LESS if size > there else 1)
        if not quality and (choice := self.choosing.alike(there, plain=True)) is not None:
            other = self._carried(self._recipe(choice, {"algorithm": "gptq"}), "one option for all, rounded by gptq")
            if all(j["passed"] for j in self._held(other).values()) and self.effect.lost(other.quality) < self.effect.lost(best.quality):
                best = other
        return best

    def _chosen(self, room: float, on_outputs: list[str], slack: float) -> Point:
        """Raises: BudgetNotMet."""
        choosing = self.choosing
        if room < choosing.bytes(choosing.smallest()) - choosing.fixed:
            trial = self._carried(self._recipe(choosing.smallest()), "the smallest of all")
            held = self._held(trial)
            if all(j["passed"] for j in held.values()):
                return choosing.verified("the smallest of all", choosing.smallest())
            self._refuse(trial, [n for n in budgets.SIZE if n in self.budget], "the smallest that was found")
        if not on_outputs:
            if any(n in self.budget for n in budgets.SIZE):
                return choosing.within(room)
            return choosing.verified("the smallest that is near enough", choosing.smallest())

        def good(point: Point) -> bool:
            return all(self._good(name, point.figures, slack) for name in on_outputs)

        found = choosing.smallest_with(good, room)
        if found is None:
            point = choosing.within(room) if math.isfinite(room) else choosing.verified("the best of all", choosing.best())
            self._refuse(self._carried(self._recipe(point.choice), point.how), on_outputs, "the best that was found" + (" within that size" if math.isfinite(room) else ""))
            return point
        return found

    def _strict(self, trial: Trial, on_outputs: list[str]) -> bool:
        """Whether a result is clearly better than asked for, so that a smaller one may do."""
        held = self._held(trial)
        lost = {n: (1 - held[n]["value"], 1 - held[n]["limit"]) if n == "min_cosine" else (held[n]["value"], held[n]["limit"]) for n in on_outputs}
        return all(value < _STRICT * limit for value, limit in lost.values())

    def _good(self, name: str, figures: dict, slack: float) -> bool:
        """Whether a figure keeps to its bound, with a part of what may be lost to spare."""
        limit, value = self.budget[name], figures.get("cosine" if name == "min_cosine" else "kl")
        if value is None:
            return False
        return 1 - value <= (1 - limit) * (1 - slack) if name == "min_cosine" else value <= limit * (1 - slack)

    def _refuse(self, trial: Trial, bounds: list[str], what: str) -> None:
        held = self._held(trial)
        name = next((n for n in bounds if not held[n]["passed"]), None)
        if name is None:
            return
        nearest = {n: held[n]["value"] for n in bounds if not held[n]["passed"]}
        size = f"; it takes {trial.totals['bytes_after']:,} bytes" if name in budgets.QUALITY else ""
        raise BudgetNotMet(f"{what} has {name} {held[name]['value']:.6g}, the budget is {held[name]['limit']:g}{size}", pointer=f"/budget/{name}", nearest=nearest)

    def _tighten(self, judged: dict) -> None:
        """Leave out the options whose error the samples have told too low."""
        factor = judged["limit"] / judged["value"] * 0.995 if judged["value"] else 0.9
        limit = judged["limit"] * factor
        for row in self.table.rows:
            good = [i for i, t in enumerate(row.told) if t.error <= limit] or [min(range(len(row.told)), key=lambda i: row.told[i].error)]
            row.measured = {good.index(i): loss for i, loss in row.measured.items() if i in good}
            row.options, row.told = [row.options[i] for i in good], [row.told[i] for i in good]
        self.choosing = Choosing(self.table.rows, self.choosing.fixed, self._verify if self.effect else None)

    def _recipe(self, choice: Choice, changes: dict | None = None) -> dict:
        """The recipe of a choice. Args: changes: see `resolved`."""
        chosen = [(r.group, r.options[o]) for r, o in zip(self.table.rows, choice, strict=True)]
        return resolved([(g, o, sum(map(asked_bits, self.cache.all(g, o))) if o.price is not None else 0) for g, o in chosen], self.output, changes)

    def _carried(self, recipe: dict, how: str) -> Trial:
        trial = self._timed("trial", lambda: self.carrying.out(recipe, self.names))
        self.trials.append((how, trial))
        self._share("trial", 2)(1)
        return trial

    def _held(self, trial: Trial) -> dict[str, dict]:
        return budgets.held(self.budget, trial.rows, trial.totals, trial.quality)

    def told(self, trial: Trial | None) -> dict:
        """The report's `search`."""
        choosing, effect = self.choosing, self.effect
        seen = front(list(choosing.points.values())) if choosing else []
        figure = effect.figure if effect else "loss"
        return {
            "budget": self.budget,
            "met": trial is not None,
            "judged_by": {"task": effect.task, "figure": figure} | effect.samples if effect else {"figure": "error of the weights" if self.statistics is None else "gradients"},
            "tensors": len(self.names),
            "groups": len(self.groups),
            "options": sum(len(r.options) for r in self.table.rows),
            "measured": sum(len(r.measured) for r in self.table.rows if r.group.felt),
            "carried_out": [_trial(how, t) | ({"chosen": True} if t is trial else {}) for how, t in self.trials],
            "verified": len(choosing.points) if choosing else 0,
            "front": [{"how": p.how, "bytes": round(p.bytes), figure: p.figures.get(figure, p.lost)} for p in seen],
            "bounds": self._held(trial) if trial else {},
            "notes": self.notes,
            "seconds": {part: round(s, 3) for part, s in self.seconds.items()} | {"all": round(time.monotonic() - self.started, 3)},
        }


def _trial(how: str, trial: Trial) -> dict:
    return {"how": how, "bytes": trial.totals["bytes_after"], "relative_error": trial.totals["relative_error"]} | ({"quality": trial.quality} if trial.quality else {})


def child(inp: Path, out: Path, spec: dict, emit: Emit) -> None:
    """The child's entry: `run`, ended by one final event."""
    from worker.__main__ import run as ended

    ended(inp, out, spec, emit, work=run)
