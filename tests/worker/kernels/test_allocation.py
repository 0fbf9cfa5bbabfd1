"""The knapsack against every combination."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.kernels.allocation import allocate


@st.composite
def problems(draw):
    groups = draw(st.integers(1, 5))
    options = [draw(st.integers(1, 4)) for _ in range(groups)]
    sizes = [[draw(st.integers(0, 30)) for _ in range(n)] for n in options]
    losses = [[draw(st.floats(0, 100)) for _ in range(n)] for n in options]
    return sizes, losses, draw(st.integers(0, 90))


def every(sizes, losses, budget):
    """(loss, size) of all combinations that fit."""
    for which in itertools.product(*(range(len(s)) for s in sizes)):
        size = sum(s[o] for s, o in zip(sizes, which, strict=True))
        if size <= budget:
            yield sum(x[o] for x, o in zip(losses, which, strict=True)), size


@settings(max_examples=200, deadline=None)
@given(problems())
def test_no_combination_is_better(problem):
    sizes, losses, budget = problem
    found = allocate(sizes, losses, budget)
    fitting = list(every(*problem))
    if found is None:
        assert not fitting
        return
    assert sum(s[o] for s, o in zip(sizes, found, strict=True)) <= budget
    assert np.isclose(sum(x[o] for x, o in zip(losses, found, strict=True)), min(loss for loss, _ in fitting))


@settings(max_examples=40, deadline=None)
@given(problems(), st.integers(10**6, 10**9))
def test_large_sizes_fit_and_lose_next_to_nothing(problem, scale):
    sizes, losses, budget = problem
    large = [[size * scale + i for i, size in enumerate(s)] for s in sizes]
    found = allocate(large, losses, budget * scale)
    if found is not None:
        assert sum(s[o] for s, o in zip(large, found, strict=True)) <= budget * scale
        got = sum(x[o] for x, o in zip(losses, found, strict=True))
        assert got >= min(loss for loss, _ in every(large, losses, budget * scale)) - 1e-9
        # a hundredth of the budget pays for the rounding of all groups
        tighter = [loss for loss, _ in every(large, losses, int(budget * scale * 0.99))]
        assert not tighter or got <= min(tighter) + 1e-9


def test_the_convex_hull_is_not_all():
    """The middle option lies above the line between the others: no price per bit selects it, and it is the best that fits."""
    assert allocate([[0, 5, 10]], [[10.0, 8.0, 0.0]], 7) == [1]
