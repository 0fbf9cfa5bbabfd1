"""Scales that are integers under a float16: against a slow search in float64, and at the edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.kernels import affine, two_level
from worker.kernels.affine import Unsigned


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(2, 8), st.booleans(), st.sampled_from([1e-38, 1e-20, 1.0, 1e30]), st.integers(0, 99))
def test_integers_are_the_nearest_under_their_float(groups, bits, signed, size, seed):
    v = torch.randn(3, groups, 1, generator=torch.Generator().manual_seed(seed)) * size
    v = v if signed else v.abs()
    exponent = two_level.exponent_of(float(v.abs().max()))
    c = two_level.coded(v, bits, signed, exponent)
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    assert c.codes.min() >= low and c.codes.max() <= high and torch.equal(c.codes, c.codes.round())
    assert torch.equal(c.above, c.above.half().float()) and torch.isfinite(c.floats(exponent)).all()
    for n in range(3):
        above = c.above[n].double().item() * 2.0**exponent
        best = [min(abs(above * code - float(x)) for code in range(low, high + 1)) for x in v[n]]
        found = np.abs(c.floats(exponent)[n, :, 0].double().numpy() - v[n, :, 0].double().numpy())
        assert (found <= np.array(best) * (1 + 1e-5) + 1e-6 * size).all()
        top = int(v[n].abs().argmax())
        assert abs(c.floats(exponent)[n, top, 0].item() - v[n, top, 0].item()) <= 1e-3 * v[n, top, 0].abs().item() + 1e-44


@pytest.mark.parametrize("largest", [0.0, 1e-45, 1e-38, 0.02, 1.0, 7.0, 3e38])
def test_exponents_bring_the_largest_near_the_top_of_float16(largest):
    e = two_level.exponent_of(largest)
    assert -126 <= e <= 126
    if 1e-30 < largest:
        assert 2.0**14 <= largest * 2.0**-e < 2.0**15


def test_a_span_of_zeros_and_groups_of_zeros_are_zeros():
    v = torch.tensor([[[0.0], [0.0]], [[0.0], [2.0]]])
    c = two_level.coded(v, 4, True, -13)
    assert c.floats(-13)[0].eq(0).all() and c.floats(-13)[1, 0].item() == 0 and abs(c.floats(-13)[1, 1].item() - 2) < 2e-3


@pytest.mark.parametrize("num_bits", [2, 4])
@pytest.mark.parametrize("zero", [False, True])
def test_refined_codes_lose_less_and_hardly_more_than_the_best_of_all(num_bits, zero):
    g = torch.Generator().manual_seed(num_bits)
    x = torch.randn(4, 3, 12, generator=g) * torch.tensor([1.0, 0.2, 0.6])[:, None]
    x = torch.where(torch.rand(x.shape, generator=g) < 0.3, 0, x) if zero else x
    levels, bits, exponent = Unsigned(num_bits), 3, two_level.exponent_of(float(x.abs().max()))
    scale, offset = affine.search(x, levels, None, zero)
    s, o = two_level.coded(scale, bits, False, exponent), two_level.coded(offset, bits, False, exponent)

    def decoded(v, a, b):
        return affine.decode(affine.encode(v, a, b, levels, zero), a, b, levels, zero)

    def loss(a, b):
        return affine.loss(x, decoded(x, a.floats(exponent), b.floats(exponent)), None)[..., 0].double()

    before, after = loss(s, o), loss(*two_level.refined(x, s, o, bits, exponent, decoded, levels, None, zero))
    assert (after <= before * (1 + 1e-5) + 1e-12).all()
    best = np.full((4, 3), np.inf)
    for n in range(4):
        for k in range(3):
            v = x[n, k].double().numpy()
            for i in range(8):
                for j in range(8):
                    a, b = (float(c.above[n, 0, 0]) * code * 2.0**exponent for c, code in ((s, i), (o, j)))
                    grid = np.arange(levels.high + 1) * a - b
                    if zero:
                        grid[0 if a == 0 else min(int(levels.high), max(0, round(b / a)))] = 0
                    best[n, k] = min(best[n, k], ((grid[np.abs(v[:, None] - grid).argmin(1)] - v) ** 2).sum())
    assert after.sum() <= 1.25 * best.sum() and (after.numpy() >= best * (1 - 1e-4) - 1e-9).all()
