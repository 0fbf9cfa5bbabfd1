"""Within a size the best: several choices are carried out, and the one that the model says least else with, on held-out samples, stays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from worker.search.choosing import Choice, Choosing
from worker.search.trial import Trial

if TYPE_CHECKING:
    from worker.search.finding import Search

_TRIALS, _MORE = 4, 2  # of the first choice, and of each other one
FULL = 0.98  # of what there is room for: enough
LESS, _LEARNED = 0.995, 0.993  # how much of it is taken once it is known how far off what is foreseen is; the same where codes were learned, which take a little more
_NEAR = 1.05  # of the room, up to which one option for all is carried out first: its bytes are foreseen that well
_WORSE = 1.25  # of the loss that is foreseen of the first choice, beyond which another is not carried out
_CLOSE = 1.5  # of the least loss so far, up to which one option for all is learned, and beyond which what has that loss is


@dataclass(frozen=True)
class Candidate:
    """What it is, whose choice, the choice within so many bytes as foreseen, whether its rounding is learned, and whether it is one option for all: then its
    bytes are foreseen well, and its loss is not: losses of few bits add up to something else where all matrices have them."""

    how: str
    choosing: Choosing
    choice: Callable[[float], Choice | None]
    learned: bool = False
    alike: bool = False


@dataclass(frozen=True)
class Fit:
    """What keeps to the budget. Args: lost: on held-out samples. size: bytes of what is searched."""

    lost: float
    size: int
    trial: Trial
    candidate: Candidate


class Best:
    def __init__(self, search: Search):
        self.search = search
        self.fit: list[Fit] = []
        self.seen: dict[tuple[str, bool], Trial] = {}
        self.tried: list[tuple[Candidate, Trial]] = []  # whether it keeps to the budget or not
        self.factors = dict[tuple[bool, bool], float]()  # bytes that were foreseen, of those that it took: of one option for all or others, learned or not
        self.least = math.inf  # the loss that was foreseen of what fits

    def within(self, room: float) -> Trial:
        """Raises: BudgetNotMet: none of what was tried fits."""
        for candidate in self._candidates(room):
            for _ in range(self._tries(candidate)):
                found = candidate.choice(room * self._taken(candidate))
                if found is None:
                    break
                what = repr(candidate.choosing.options(found)), candidate.learned
                if not (known := what in self.seen) and not self._worth(candidate, found):
                    break
                trial = self.seen[what] if known else self.search.carried(candidate.choosing, found, candidate.how, candidate.learned)
                self.seen[what] = trial
                self.tried.append((candidate, trial))
                took, there = trial.bytes_of(self.search.groups), self.search.room_beside(trial)
                room, self.factors[candidate.alike, candidate.learned] = there, (candidate.choosing.bytes(found) - candidate.choosing.fixed) / took
                if not self.search.bounds.missed(trial):
                    if not known:
                        self._fits(candidate, found, trial, took)
                    if known or self.search.learns or took > FULL * there:
                        break
        if not self.fit:
            last = self.search.trials[-1][1]
            self.search.bounds.refuse(last, list(self.search.bounds.held(last)), "the best that was found")
        return self._best().trial

    def _tries(self, candidate: Candidate) -> int:
        """What is learned later needs no more of a choice than how far off its bytes are foreseen."""
        if self.search.learns and not candidate.learned and not candidate.alike:
            return 1
        return _MORE if self.fit else _TRIALS

    def _fits(self, candidate: Candidate, found: Choice, trial: Trial, took: int) -> None:
        self.fit.append(Fit(self.search.lost(trial), took, trial, candidate))
        if self._foreseen(candidate):
            self.least = min(self.least, candidate.choosing.foreseen(found))

    def _taken(self, candidate: Candidate) -> float:
        """The bytes that may be foreseen, of those that there is room for."""
        alike, learned = candidate.alike, candidate.learned
        known = self.factors.get((alike, learned))
        if known is None and learned and (gptq := self.factors.get((alike, False))) is not None:
            known = gptq if alike else gptq * _LEARNED
        if known is None:
            return _NEAR if alike else 1.0
        return known if alike else known * LESS

    def _best(self) -> Fit:
        return min(self.fit, key=lambda f: (f.lost, f.size))

    def _foreseen(self, candidate: Candidate) -> bool:
        """Whether its loss is foreseen like that of others."""
        return candidate.choosing is self.search.compensated and not candidate.alike

    def _worth(self, candidate: Candidate, found: Choice) -> bool:
        """Whether to carry it out: it is not foreseen to be worse by far."""
        return not self._foreseen(candidate) or candidate.learned or candidate.choosing.foreseen(found) <= _WORSE * self.least

    def _candidates(self, room: float) -> Iterator[Candidate]:
        """What rounding by gptq makes up for its errors in: options for each matrix, and one for all; then what is verified to be the best without it, if that
        is better still. Learned are widths of searched grids for each matrix, and one option for all if it comes close to the best so far, else that."""
        full, plain, ints = self.search.compensated, self.search.choosing, self.search.learned
        if full is not None:
            for how in ("both",) if self.search.learns else ("both", "gradients"):
                yield Candidate(f"chosen by {how}", full, lambda r, how=how: full.by(how, r))
            yield Candidate("one option for all", full, self._alike, alike=True)
        point = plain.within(room)
        if point is not None and (not self.fit or point.lost < self._best().lost):
            yield Candidate(f"{point.how}, without gptq", plain, self._verified)
        if self.search.learns and full is not None:
            least, alike = (min((self.search.lost(t) for c, t in self.tried if c.alike == of), default=math.inf) for of in (False, True))
            if ints is not None:
                yield Candidate("widths chosen by both", ints, lambda r: ints.by("both", r), learned=True)
            if alike <= _CLOSE * least:
                yield Candidate("one option for all", full, self._alike, learned=True, alike=True)
            else:
                yield Candidate("chosen by both", full, lambda r: full.by("both", r), learned=True)
        if not self.fit:
            yield Candidate("the smallest of all", plain, lambda r: plain.smallest())

    def _alike(self, room: float) -> Choice | None:
        """One option of integers on searched grids, under a mask where there is no room otherwise."""
        full = self.search.compensated
        found = full.alike(room, lambda option: option.compensated and option.plain)
        return found or full.alike(room, lambda option: option.compensated and option.mask is not None)

    def _verified(self, room: float) -> Choice | None:
        point = self.search.choosing.within(room)
        return point and point.choice
