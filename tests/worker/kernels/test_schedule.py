from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.kernels import schedule


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 0.999), st.floats(-1, 2))
def test_the_sparsity_goes_from_nothing_to_all_that_was_asked_and_is_never_beyond(sparsity, t):
    assert schedule.cubic(sparsity, 0) == 0 and schedule.cubic(sparsity, 1) == sparsity
    assert 0 <= schedule.cubic(sparsity, t) <= sparsity


def test_half_way_seven_eighths_are_pruned():
    assert schedule.cubic(0.8, 0.5) == pytest.approx(0.8 * 7 / 8)


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1))
def test_the_rate_falls_along_half_a_cosine(a, b):
    low, high = min(a, b), max(a, b)
    assert schedule.cosine(low) >= schedule.cosine(high) >= 0.01 - 1e-12
    assert schedule.cosine(a) == pytest.approx(0.01 + 0.99 * (1 + math.cos(math.pi * a)) / 2)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 500), st.integers(1, 500), st.floats(0.05, 1))
def test_prunings_lie_within_their_part_and_never_before_the_first_step(steps, count, part):
    at = schedule.prunings(steps, count, part)
    assert len(at) == count and at == sorted(at)
    assert at[0] >= 1 and at[-1] == max(1, int(steps * part)) and at[-1] <= steps


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5000))
def test_the_rate_rises_in_even_parts_and_is_whole_after_a_tenth(steps):
    rates = [schedule.warmed(t, steps) for t in range(steps)]
    parts = min(steps // 10, schedule.WARMING)
    assert rates == sorted(rates) and rates[0] > 0 and all(r == 1 for r in rates[parts:])
    assert rates[:parts] == pytest.approx([(i + 1) / parts for i in range(parts)])
