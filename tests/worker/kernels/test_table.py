"""Levels by a table against a slow search, and the published NF4."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.normal_levels import normal_levels
from worker.kernels import scale_search, uniform
from worker.kernels.table import Table


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 8), st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=40))
def test_the_nearest_level_is_found(num_bits, values):
    table, x = Table(normal_levels(num_bits)), torch.tensor([values])
    levels = np.array(table.values)
    found = table.round(x)[0].double().numpy()
    assert set(found) <= set(levels)
    assert (np.abs(found - x[0].double().numpy()) <= np.abs(levels[:, None] - x[0].double().numpy()).min(0) + 1e-7).all()
    assert torch.equal(table.tensor(x.device)[table.codes(table.round(x)).long()], table.round(x))


@pytest.mark.parametrize("num_bits", range(2, 9))
def test_middles_and_their_neighbours_go_to_the_right_side(num_bits):
    levels = np.array(normal_levels(num_bits), np.float32)
    middles = (levels[1:] + levels[:-1]) * np.float32(0.5)
    below, above = np.nextafter(middles, np.float32(-2)), np.nextafter(middles, np.float32(2))
    table = Table(normal_levels(num_bits))
    ends = torch.tensor([-3e38, -1.0, 1.0, 3e38])
    for x, expected in ((below, range(len(middles))), (middles, range(len(middles))), (above, range(1, len(levels)))):
        assert table.codes(torch.from_numpy(x)).tolist() == list(expected)
    assert table.codes(ends).tolist() == [0, 0, len(levels) - 1, len(levels) - 1]


@pytest.mark.parametrize("num_bits", range(2, 9))
def test_normal_levels_have_both_ends_and_a_zero(num_bits):
    levels = normal_levels(num_bits)
    assert len(levels) == 1 << num_bits and list(levels) == sorted(set(levels))
    assert levels[0] == -1 and levels[-1] == 1 and levels[(1 << num_bits - 1) - 1] == 0
    assert all(np.float32(v) == v for v in levels)


def test_the_rule_gives_the_published_table(monkeypatch):
    published = normal_levels(4)
    monkeypatch.setattr("app.normal_levels._NF4", None)
    assert normal_levels.__wrapped__(4) is None  # so the table is what was asked
    from statistics import NormalDist

    first = 0.9677083
    positive = [NormalDist().inv_cdf(first + (0.5 - first) * i / 8) for i in range(8)]
    negative = [-NormalDist().inv_cdf(first + (0.5 - first) * i / 7) for i in range(7)]
    assert np.allclose(sorted([*negative, 0, *positive]) / np.float64(max(positive)), published, atol=1e-6)


def test_a_searched_scale_loses_less():
    x, table = torch.randn(300, 64, generator=torch.Generator().manual_seed(1)), Table(normal_levels(4))

    def loss(scale):
        return (table.round(uniform.divide(x, scale)) * scale - x).square().sum().item()

    assert loss(scale_search.search(x, table, torch.float16)) < 0.95 * loss(uniform.stored(uniform.absmax_scale(x, table), torch.float16))
