"""Within a size the best: several choices are carried out, and the one that the model says least else with, on held-out samples, stays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from worker.search.choosing import Choice, Choosing
from worker.search.trial import Trial

if TYPE_CHECKING:
    from worker.search.finding import Search

_TRIALS, _MORE = 4, 2  # of the first choice, and of each other one
FULL, LESS = 0.98, 0.995  # of what there is room for: enough, and how much of it is taken once it is known how far off what is foreseen is
_WORSE = 1.25  # of the loss that is foreseen of the first choice, beyond which another is not carried out


@dataclass(frozen=True)
class Candidate:
    """What it is, whose choice, the choice within so many bytes as foreseen, whether its rounding is learned, and whether it is one option for all: then its
    bytes are foreseen well, and its loss is not: losses of few bits add up to something else where all matrices have them."""

    how: str
    choosing: Choosing
    choice: Callable[[float], Choice | None]
    learned: bool = False
    alike: bool = False


class Best:
    def __init__(self, search: Search):
        self.search = search
        self.fit: list[tuple[float, float, Trial, Candidate]] = []  # that keep to the budget: loss, bytes
        self.seen: list[tuple] = []

    def within(self, room: float) -> Trial:
        """Raises: BudgetNotMet: none of what was tried fits."""
        factors, least = dict[tuple[Choosing, bool], float](), math.inf  # bytes that were foreseen, of those that it took; the loss that was foreseen of what fits
        for candidate in self._candidates(room):
            choosing, alike = candidate.choosing, candidate.alike
            compensated = choosing is self.search.compensated
            for _ in range(_MORE if self.fit else _TRIALS):
                found = candidate.choice(room * factors.get((choosing, alike), 1.0))
                if found is None or (what := (choosing.options(found), candidate.learned)) in self.seen:
                    break
                lost = choosing.foreseen(found)
                if compensated and not alike and lost > _WORSE * least:
                    break
                self.seen.append(what)
                trial = self.search.carried(choosing, found, candidate.how, candidate.learned)
                took, there = trial.bytes_of(self.search.groups), self.search.room_beside(trial)
                if not self.search.bounds.missed(trial):
                    self.fit.append((self.search.lost(trial), took, trial, candidate))
                    least = min(least, lost) if compensated and not alike else least
                    if candidate.learned or took > FULL * there:
                        break
                room, factors[choosing, alike] = there, (choosing.bytes(found) - choosing.fixed) / took * LESS
        if not self.fit:
            last = self.search.trials[-1][1]
            self.search.bounds.refuse(last, list(self.search.bounds.held(last)), "the best that was found")
        return self._best()[2]

    def _best(self) -> tuple[float, float, Trial, Candidate]:
        return min(self.fit, key=lambda f: f[:2])

    def _candidates(self, room: float) -> Iterator[Candidate]:
        """What rounding by gptq makes up for its errors in: options for each matrix by two ways to weigh, and one for all; then what is verified to be the
        best without it, if that is better still; and the best of them with its rounding learned."""
        full, plain = self.search.compensated, self.search.choosing
        if full is not None:
            for how in ("both", "gradients"):
                yield Candidate(f"chosen by {how}", full, lambda r, how=how: full.by(how, r))
            yield Candidate("one option for all", full, lambda r: full.alike(r, lambda option: option.compensated), alike=True)
        point = plain.within(room)
        if point is not None and (not self.fit or point.lost < self._best()[0]):
            yield Candidate(f"{point.how}, without gptq", plain, self._verified)
        if (ints := self.search.learned) is not None and self.fit:
            yield Candidate("chosen by both", ints, lambda r: ints.by("both", r), learned=True)
            yield Candidate("one option for all", ints, ints.alike, learned=True, alike=True)
            yield replace(self._best()[3], learned=True)

    def _verified(self, room: float) -> Choice | None:
        point = self.search.choosing.within(room)
        return point and point.choice
