"""Within a size the best: several choices are carried out, and the one that the model says least else with, on held-out samples, stays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from worker.search.choosing import Choice, Choosing
from worker.search.trial import Trial

if TYPE_CHECKING:
    from worker.search.finding import Search

_TRIALS, _MORE = 4, 2  # of the first choice, and of each other one
FULL, LESS = 0.98, 0.995  # of what there is room for: enough, and how much of it is taken once it is known how far off what is foreseen is
_WORSE = 1.25  # of the loss that is foreseen of the first choice, beyond which another is not carried out

Candidate = tuple[str, Choosing, Callable[[float], Choice | None]]
"""What it is, whose choice, and the choice within so many bytes as foreseen."""


class Best:
    def __init__(self, search: Search):
        self.search = search
        self.fit: list[tuple[float, float, Trial]] = []  # that keep to the budget: loss, bytes
        self.seen: list[tuple] = []

    def within(self, room: float) -> Trial:
        """Raises: BudgetNotMet: none of what was tried fits."""
        factor, least = 1.0, math.inf  # bytes that were foreseen, of those that it took; the loss that was foreseen of what fits
        for how, choosing, choice in self._candidates(room):
            own = factor
            for _ in range(_MORE if self.fit else _TRIALS):
                found = choice(room * own)
                if found is None or (what := choosing.options(found)) in self.seen:
                    break
                lost = choosing.foreseen(found)
                if choosing is self.search.compensated and lost > _WORSE * least:
                    break
                self.seen.append(what)
                trial = self.search.carried(choosing, found, how)
                took, there = trial.bytes_of(self.search.groups), self.search.room_beside(trial)
                if not self.search.bounds.missed(trial):
                    self.fit.append((self.search.lost(trial), took, trial))
                    least = min(least, lost) if choosing is self.search.compensated else least
                    if took > FULL * there:
                        break
                room, own = there, (choosing.bytes(found) - choosing.fixed) / took * LESS
            factor = own if choosing is self.search.compensated else 1.0
        if not self.fit:
            last = self.search.trials[-1][1]
            self.search.bounds.refuse(last, list(self.search.bounds.held(last)), "the best that was found")
        return min(self.fit, key=lambda f: f[:2])[2]

    def _candidates(self, room: float) -> Iterator[Candidate]:
        """What rounding by gptq makes up for its errors in: options for each matrix by two ways to weigh, and one for all; then what is verified to be the
        best without it, if that is better still."""
        full, plain = self.search.compensated, self.search.choosing
        if full is not None:
            for how in ("both", "gradients"):
                yield f"chosen by {how}", full, lambda r, how=how: full.by(how, r)
            yield "one option for all", full, full.alike
        point = plain.within(room)
        if point is not None and (not self.fit or point.lost < min(f[0] for f in self.fit)):
            yield f"{point.how}, without gptq", plain, self._verified

    def _verified(self, room: float) -> Choice | None:
        point = self.search.choosing.within(room)
        return point and point.choice
