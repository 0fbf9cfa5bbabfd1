"""What is chosen from a table whose losses are known, against all choices that there are."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from worker.kernels.front import path
from worker.search.choosing import Choosing, front
from worker.search.sampling import Told

tables = st.lists(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 1000)), min_size=1, max_size=4), min_size=1, max_size=3)


class Table:
    """Rows of made-up options, and the truth of what choices lose: the sum of the second numbers."""

    def __init__(self, groups, told=lambda i, size, loss: float(loss)):
        self.groups, self.asked = groups, []
        self.rows = [
            SimpleNamespace(
                options=list(range(len(g))), told=[Told(s, told(i, s, x), 0.1) for i, (s, x) in enumerate(g)], measured={i: float(x) for i, (_, x) in enumerate(g)},
                losses=lambda g=g: [float(x) for _, x in g],
            )
            for g in groups
        ]  # fmt: skip

    def verify(self, choice):
        self.asked.append(choice)
        lost = float(sum(g[o][1] for g, o in zip(self.groups, choice)))
        return lost, {"kl": lost}

    def all(self):
        return [(sum(g[o][0] for g, o in zip(self.groups, c)), sum(g[o][1] for g, o in zip(self.groups, c))) for c in product(*(range(len(g)) for g in self.groups))]


@examples(deadline=None)
@given(tables, st.integers(1, 130))
def test_the_best_within_a_size_even_where_gradients_mislead(groups, room):
    table = Table(groups, told=lambda i, s, x: 1000.0 - x)
    found = Choosing(table.rows, 100, table.verify).within(room)
    fit = [x for s, x in table.all() if s <= room]
    assert (found is None) == (not fit)
    if fit:
        assert found.lost == min(fit) and found.bytes - 100 <= room


@examples(deadline=None)
@given(tables, st.integers(0, 3000))
def test_what_is_foreseen_to_be_as_good_is_the_first_of_the_path_that_is(groups, limit):
    choosing = Choosing((table := Table(groups)).rows, 0, table.verify)
    found, along = choosing.as_good_as(limit), path(choosing.sizes, choosing.ways["both"])
    each = [tuple(along[n]) for n in range(len(along))]
    assert found == next((c for c in each if choosing.foreseen(c) <= limit), each[-1]) and not table.asked


@examples(deadline=None)
@given(tables, st.integers(0, 3000))
def test_the_smallest_that_is_good_enough_is_on_the_hull(groups, limit):
    table = Table(groups)
    found = Choosing(table.rows, 0, table.verify).smallest_with(lambda p: p.lost <= limit)
    good = [s for s, x in table.all() if x <= limit]
    assert (found is None) == (not good)
    if found:
        assert found.lost <= limit and found.bytes >= min(good)
        assert not any(s < found.bytes and x <= found.lost for s, x in table.all())


def test_halving_asks_seldom():
    groups = [[(10 + 10 * i, 1000 // (i + 1)) for i in range(20)]] * 3
    table = Table(groups)
    assert Choosing(table.rows, 0, table.verify).smallest_with(lambda p: p.lost <= 900)
    assert len(table.asked) <= 8


def test_one_option_for_all_is_among_the_finalists():
    table = Table([[(10, 50), (20, 5)], [(10, 60), (20, 6)]])
    found = dict(Choosing(table.rows, 0, table.verify).finalists(40))
    assert found["one option for all"] == (1, 1) == found["chosen by outputs"]


def test_without_a_model_losses_that_were_added_up_are_told():
    table = Table([[(10, 50), (20, 5)]])
    for row in table.rows:
        row.measured = {}
    choosing = Choosing(table.rows, 0, None)
    assert choosing.within(20).lost == 5.0 and choosing.within(15).lost == 50.0 and choosing.within(5) is None
    assert (choosing.smallest(), choosing.best()) == ((0,), (1,))


def test_the_front_has_nothing_that_is_beaten():
    table = Table([[(10, 50), (20, 5), (25, 9)]])
    choosing = Choosing(table.rows, 0, table.verify)
    for i in range(3):
        choosing.verified("x", (i,))
    assert [(p.bytes, p.lost) for p in front(list(choosing.points.values()))] == [(10, 50), (20, 5)]


@pytest.mark.parametrize("room", [0, 9])
def test_what_fits_nowhere_is_none(room):
    table = Table([[(10, 50)]])
    assert Choosing(table.rows, 0, table.verify).within(room) is None
