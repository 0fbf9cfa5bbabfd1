"""The best within a size, of a search whose trials are made up: what is really measured decides, not what was foreseen."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from app.errors import BudgetNotMet
from worker.search.choosing import Choosing
from worker.search.options import _quantized
from worker.search.sampling import Told
from worker.search.size import Best

WEIGHTS = 1000
OPTIONS = [_quantized(bits, {"strategy": "channel"}) for bits in (2, 3, 4)]
COMPENSATED = [option.twin for option in OPTIONS]


class Search:
    """Two matrices with the same options. Args: takes: bytes of a choice, learned or not. loses: likewise. foreseen: bytes by bits, that the samples tell."""

    def __init__(self, room, takes, loses, foreseen):
        self.limit, self.takes, self.loses, self.trials, self.carried_out = room, takes, loses, [], []
        group = SimpleNamespace(count=WEIGHTS)
        told = [Told(foreseen(o.steps[0].num_bits), 4.0 ** -o.steps[0].num_bits, 0.1) for o in OPTIONS]
        rows = [SimpleNamespace(group=group, options=list(options), told=told, measured={}, losses=lambda: [t.loss for t in told]) for options in (COMPENSATED,) * 2]
        plain = [SimpleNamespace(group=group, options=OPTIONS, told=told, measured={}, losses=lambda: [t.loss for t in told]) for _ in range(2)]
        self.choosing = Choosing(plain, 0, lambda choice: (1e9, {}))
        self.compensated = self.learned = Choosing(rows, 0, lambda choice: (1e9, {}))
        self.groups, self.learns = [], True
        self.bounds = SimpleNamespace(missed=lambda trial: ["avg_bits"] * (trial.size > room), held=lambda trial: {"avg_bits": {}}, refuse=self.refuse)

    def refuse(self, trial, names, what):
        raise BudgetNotMet(what, nearest={})

    def carried(self, choosing, choice, how, learned=False):
        bits = tuple(o.steps[0].num_bits for o in choosing.options(choice))
        what = choosing.options(choice), learned
        assert what not in self.carried_out
        self.carried_out.append(what)
        size = self.takes(bits, learned)
        trial = SimpleNamespace(bits=bits, learned=learned, size=size, loss=self.loses(bits, learned), bytes_of=lambda groups: size)
        self.trials.append((how, trial))
        return trial

    def lost(self, trial):
        return trial.loss

    def room_beside(self, trial):
        return self.limit


def bytes_of(bits, learned=False):
    return sum(WEIGHTS * b // 8 for b in bits) * (1.004 if learned else 1)


def alike_is_best(bits, learned):
    """As few bits are: all of two lose less than some of three, and learning gains most."""
    return (0.5 if len(set(bits)) == 1 else 1.5) * 4.0 ** -min(bits) / (3 if learned else 1)


def test_one_option_for_all_that_was_foreseen_to_be_too_large_by_a_little_wins_where_it_fits():
    search = Search(bytes_of((2, 2), True) + 1, bytes_of, alike_is_best, lambda bits: 1.02 * WEIGHTS * bits // 8)
    found = Best(search).within(search.limit)
    assert (found.bits, found.learned) == ((2, 2), True)


def test_widths_for_each_matrix_win_where_they_lose_less():
    search = Search(bytes_of((2, 3)) * 1.02, bytes_of, lambda bits, learned: sum(4.0**-b for b in bits) / (3 if learned else 1), lambda bits: WEIGHTS * bits // 8)
    found = Best(search).within(search.limit)
    assert (sorted(found.bits), found.learned) == ([2, 3], True)


def test_what_is_better_without_learning_stays_as_it_is():
    search = Search(bytes_of((3, 3)) * 1.02, bytes_of, lambda bits, learned: 4.0 ** -min(bits) * (2 if learned else 1), lambda bits: WEIGHTS * bits // 8)
    found = Best(search).within(search.limit)
    assert (found.bits, found.learned) == ((3, 3), False)


@pytest.mark.parametrize("off", [0.7, 0.9, 0.97, 1.0, 1.02])
@pytest.mark.parametrize("share", [1.0, 1.15, 1.3, 1.6])
def test_however_far_off_what_is_foreseen_is_the_size_is_kept_to(off, share):
    search = Search(share * bytes_of((2, 2)), bytes_of, alike_is_best, lambda bits: off * WEIGHTS * bits // 8)
    assert Best(search).within(search.limit).size <= search.limit


def test_what_does_not_fit_in_any_way_is_refused():
    search = Search(bytes_of((2, 2)) - 1, bytes_of, alike_is_best, lambda bits: 0.9 * WEIGHTS * bits // 8)
    with pytest.raises(BudgetNotMet):
        Best(search).within(search.limit)
