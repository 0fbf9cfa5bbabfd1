"""Losses between those that were measured, the slope at a size, and which options are measured."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.kernels.front import path
from worker.search.sampling import Told
from worker.search.table import Row, anchors, slope_at


def row(told: list[tuple[float, float]], measured: dict[int, float] | None = None) -> Row:
    return Row(SimpleNamespace(count=8), [SimpleNamespace(uniform=True, compensated=False, price=None)] * len(told), [Told(s, x, 0.1) for s, x in told], measured or {})


@given(st.lists(st.tuples(st.floats(1, 100), st.floats(1e-6, 1e6)), min_size=1, max_size=8), st.data())
def test_what_was_measured_stays_and_the_rest_goes_with_the_samples(told, data):
    known = data.draw(st.dictionaries(st.integers(0, len(told) - 1), st.floats(1e-9, 1e3), min_size=1))
    losses = row(told, known).losses()
    assert all(losses[i] == x for i, x in known.items()) and all(x > 0 for x in losses)
    if len(known) == 1:
        (i, x), = known.items()
        assert losses == pytest.approx([x * t / told[i][1] for _, t in told], rel=1e-6)


def test_in_between_it_is_a_line_on_log_scales():
    assert row([(4, 1.0), (3, 4.0), (2, 16.0), (1, 64.0)], {0: 1.0, 2: 256.0}).losses() == pytest.approx([1, 16, 256, 1024])


@given(st.lists(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 1000)), min_size=1, max_size=4), min_size=1, max_size=3), st.integers(1, 160))
def test_the_slope_is_the_one_that_the_path_has_at_that_size(groups, target):
    sizes, losses = [[float(s) for s, _ in g] for g in groups], [[float(x) for _, x in g] for g in groups]
    slope = slope_at(sizes, losses, target)
    along = path(sizes, losses)
    steps = [along[n] for n in range(len(along))]
    total = [sum(s[o] for s, o in zip(sizes, c)) for c in steps]
    lost = [sum(x[o] for x, o in zip(losses, c)) for c in steps]
    if len(steps) < 2:
        assert slope == 1.0
        return
    at = next((i for i, s in enumerate(total) if s >= target and i), len(steps) - 1)
    assert slope == pytest.approx((lost[at - 1] - lost[at]) / (total[at] - total[at - 1]))


def test_what_is_measured_lies_around_what_is_likely():
    told = [(float(i), 4.0 ** (12 - i)) for i in range(13)]  # a byte is a bit of 8 weights: it takes three quarters of the loss
    everything = list(range(13))
    near = anchors(row(told), 3 * 4.0**6, everything)
    assert len(near) == 2 and min(near) <= 6 <= max(near) <= min(near) + 3
    assert set(anchors(row(told), 3 * 4.0**6, everything[:5])) <= set(everything[:5])
    spread = anchors(row(told), None, everything)
    assert len(spread) == len(set(spread)) == 2


def test_each_kind_of_option_goes_by_its_own_measured_ones():
    scales, levels = (SimpleNamespace(uniform=u, compensated=False, price=None) for u in (True, False))
    told = [Told(4.0, 1.0, 0.1), Told(2.0, 4.0, 0.1), Told(4.0, 1.0, 0.1), Told(2.0, 4.0, 0.1)]
    both = Row(SimpleNamespace(count=8), [scales, scales, levels, levels], told, {0: 10.0, 2: 30.0})
    assert both.losses() == pytest.approx([10, 40, 30, 120])
