"""The smallest that is good enough, or, where the model is not run, the least loss within a size by what is foreseen."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from app import budget as budgets
from app.errors import BudgetNotMet
from worker.search.choosing import Point
from worker.search.size import FULL, LESS, Best
from worker.search.trial import Trial

if TYPE_CHECKING:
    from worker.search.finding import Search

_TRIALS, _LEARNED = 4, 2
_SPARE = 0.02  # of what may be lost, left after a quality was missed
_STRETCH = 0.5  # by how much more than asked for is foreseen where less is lost than may be
_SMALLER = 0.93  # of the bytes that have a quality, tried next


class Smallest:
    def __init__(self, search: Search):
        self.search, self.bounds = search, search.bounds

    def found(self, room: float) -> Trial:
        """Raises: BudgetNotMet."""
        full = self.search.compensated
        try:
            trial = self._settled(room)
        except BudgetNotMet:
            if full is None or not self.bounds.on_outputs or math.isinf(room):
                raise
            other = Best(self.search).within(room)  # what is rounded by gptq may have that quality within that size
            self.bounds.refuse(other, list(self.bounds.held(other)), "the best that was found within that size")
            return other
        for learned in (False, *([True] if self.search.learns else ())) if full is not None and self.bounds.on_outputs else ():
            trial = self._smaller(trial, learned)
        return trial

    def _settled(self, room: float) -> Trial:
        """Choose and carry out; once more with other room where the result takes more or clearly less than was foreseen, or misses a quality by a little."""
        search, on_outputs = self.search, self.bounds.on_outputs
        good: list[tuple[float, float, Trial]] = []
        slack, foreseen, seen = 0.0, room, set()
        for _ in range(_TRIALS):
            try:
                point = self._chosen(foreseen, slack)
            except BudgetNotMet:
                if good:
                    break
                raise
            if point.choice in seen:
                break
            seen.add(point.choice)
            trial = search.carried(search.choosing, point.choice, point.how)
            missed = self.bounds.missed(trial)
            took, there = trial.bytes_of(search.groups), search.room_beside(trial)
            lost = search.lost(trial, point.lost)
            if not missed:
                size = trial.totals["bytes_after"]
                good.append((size, lost, trial) if on_outputs or math.isinf(there) else (lost, size, trial))
                if not self.bounds.spare(trial) if on_outputs else took > FULL * there or math.isinf(there):
                    break
            if took > there or (not missed and not on_outputs):
                foreseen = there * (point.bytes - search.fixed) / took * LESS
            if on_outputs and lost > 0:  # what is foreseen is a little off, by as much the next time
                slack = min(max(1 - point.lost / lost, -_STRETCH), 1 - _STRETCH / 5) + (_SPARE if any(name in missed for name in on_outputs) else 0)
            if "max_relative_error" in missed:
                self._tighten(self.bounds.held(trial)["max_relative_error"])
                seen.clear()
        if not good:
            budgets.enforce(self.bounds.held(trial))
        return min(good, key=lambda g: g[:2])[2]

    def _chosen(self, room: float, slack: float) -> Point:
        """Raises: BudgetNotMet."""
        search, choosing = self.search, self.search.choosing
        if not self.bounds.on_outputs:
            if self.bounds.on_size and (point := choosing.within(room)) is not None:
                return point
            return choosing.verified("the smallest that is near enough", choosing.smallest())
        found = choosing.smallest_with(lambda point: self.bounds.good(point.figures, slack), room)
        if found is None:
            within = " within that size" if math.isfinite(room) else ""
            point = choosing.within(room) if within else choosing.verified("the best of all", choosing.best())
            if point is None:
                point = choosing.verified("the smallest of all", choosing.smallest())
            self.bounds.refuse(search.carried(choosing, point.choice, point.how), self.bounds.on_outputs, f"the best that was found{within}")
            return point
        return found

    def _smaller(self, trial: Trial, learned: bool) -> Trial:
        """The trial, or what takes less and is as good since its rounding makes up for its errors, or is learned."""
        search, full, took = self.search, self.search.compensated, trial.bytes_of(self.search.groups)
        best, size, low, room = trial, took, 0.0, took * _SMALLER
        if not learned:
            foreseen = search.choosing.by("both", took)
            if foreseen is None:
                return trial
            room = min(room, full.bytes(full.as_good_as(search.choosing.foreseen(foreseen))) - full.fixed)
        for _ in range(_LEARNED if learned else _TRIALS - 1):
            choice = full.by("both", room)
            if choice is None:
                break
            other = search.carried(full, choice, "chosen by both" if learned else "chosen by both, rounded by gptq", learned)
            if not self.bounds.missed(other) and other.bytes_of(search.groups) < size:
                best, size = other, other.bytes_of(search.groups)
                if not self.bounds.spare(other):
                    break
                room = max(size * _SMALLER, (low + size) / 2)
            else:
                low, room = room, (room + size) / 2
                if room > FULL * size:
                    break
        return best

    def _tighten(self, judged: dict) -> None:
        """Leave out the options whose error the samples have told too low."""
        factor = judged["limit"] / judged["value"] * 0.995 if judged["value"] else 0.9
        self.search.nearer = min(self.search.nearer, judged["limit"]) * factor
        self.search.choose()
