"""Hulls and paths against all choices that there are."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from worker.kernels.front import best_within, hull, path, running

options = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 1000)), min_size=1, max_size=4)
groups = st.lists(options, min_size=1, max_size=4)


def split(found):
    return [[s for s, _ in g] for g in found], [[float(x) for _, x in g] for g in found]


def totals(sizes, losses, choice) -> tuple[int, float]:
    return sum(s[o] for s, o in zip(sizes, choice)), sum(x[o] for x, o in zip(losses, choice))


@given(options)
def test_nothing_lies_below_the_hull(found):
    (sizes,), (losses,) = split([found])
    h = hull(sizes, losses)
    assert [sizes[i] for i in h] == sorted({sizes[i] for i in h}) and [losses[i] for i in h] == sorted({losses[i] for i in h}, reverse=True)
    assert min(sizes) == sizes[h[0]] and min(losses) == losses[h[-1]]
    for s, x in found:
        for a, b in zip(h, h[1:]):
            if sizes[a] <= s <= sizes[b]:
                assert (sizes[b] - sizes[a]) * x >= losses[a] * (sizes[b] - s) + losses[b] * (s - sizes[a]) - 1e-6


@examples(deadline=None)
@given(groups)
def test_no_choice_of_the_size_of_one_on_the_path_is_better(found):
    sizes, losses = split(found)
    all_of_them = [totals(sizes, losses, c) for c in product(*(range(len(g)) for g in found))]
    last, along = -1, path(sizes, losses)
    for n, told in enumerate(running(sizes, along)):
        size, loss = totals(sizes, losses, along[n])
        assert size == told and n < len(along)
        assert size > last and loss == min(x for s, x in all_of_them if s <= size)
        last = size
    assert loss == min(x for _, x in all_of_them)


@examples(deadline=None)
@given(groups, st.integers(0, 250))
def test_the_best_within_a_budget_is_the_best_of_all(found, budget):
    sizes, losses = split(found)
    fit = [x for c in product(*(range(len(g)) for g in found)) for s, x in [totals(sizes, losses, c)] if s <= budget]
    choice = best_within(sizes, losses, budget)
    if not fit:
        assert choice is None
    elif budget:
        assert totals(sizes, losses, choice)[0] <= budget and totals(sizes, losses, choice)[1] == pytest.approx(min(fit))
    else:
        assert totals(sizes, losses, choice)[0] == 0


def test_of_very_many_options_what_fits_of_the_path_is_taken():
    sizes, losses = [[3, 5, 9]] * 4000, [[9.0, 4.0, 1.0]] * 4000
    choice = best_within(sizes, losses, 4000 * 5 + 7)
    assert totals(sizes, losses, choice)[0] <= 4000 * 5 + 7 and choice.count(1) >= 3990
