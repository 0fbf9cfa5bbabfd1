"""Splits are fixed, disjoint, and together the whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.samples.split import ENOUGH, FEWEST, SPLITS, shared, split


@given(st.integers(0, 400))
def test_they_are_the_whole_and_disjoint(count):
    parts = [split(count, name) for name in SPLITS]
    assert all(p == sorted(p) for p in parts)
    if shared(count):
        assert all(p == list(range(count)) for p in parts)
    else:
        assert sorted(sum(parts, [])) == list(range(count)) and [len(p) for p in parts[1:]] == [count // 10] * 2


def test_an_order_of_the_data_moves_nothing_into_one_part():
    classes = [[i % 10 for i in split(2000, name)] for name in SPLITS]
    assert all(set(c) == set(range(10)) and max(map(c.count, range(10))) < 2.2 * len(c) / 10 for c in classes)


def test_of_many_samples_few_are_held_out():
    assert [len(split(60_000, name)) for name in SPLITS] == [60_000 - 2 * ENOUGH, ENOUGH, ENOUGH]


def test_they_stay_as_they_are():
    assert (split(FEWEST, "test"), split(FEWEST, "stop")) == ([8, 9], [13, 17])
    with pytest.raises(ValueError, match="fit, stop, test"):
        split(100, "train")
