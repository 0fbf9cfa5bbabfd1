"""Scales, codes and errors: by the formulas, at the edges, and the search against absmax."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.kernels import scale_search, uniform
from worker.kernels.uniform import Levels

groups = st.integers(1, 40).flatmap(lambda n: st.lists(st.floats(-1e4, 1e4, width=32), min_size=n, max_size=n))


@settings(max_examples=80, deadline=None)
@given(groups, st.integers(2, 8))
def test_symmetric_codes_against_numpy(values, num_bits):
    levels, x = Levels(num_bits), torch.tensor([values], dtype=torch.float32)
    scale = uniform.stored(uniform.absmax_scale(x, levels), torch.float32)
    codes = uniform.encode(x, scale, None, levels)
    s = np.float32(np.abs(np.array(values, np.float32)).max()) / np.float32((2**num_bits - 1) / 2)
    s = s if s > 0 else np.finfo(np.float32).eps
    expected = np.clip(np.round(np.array(values, np.float32) / np.float32(s)), -(2 ** (num_bits - 1)), 2 ** (num_bits - 1) - 1)
    assert codes[0].numpy().tolist() == expected.tolist()
    error = (uniform.decode(codes, scale, None) - x).abs().max().item()
    assert error <= scale.item() * 0.5 * (1 + 1e-5) + 1e-30 + 1e-6 * x.abs().max().item()  # of the difference itself


@settings(max_examples=80, deadline=None)
@given(groups, st.integers(2, 8), st.booleans())
def test_asymmetric_ranges_include_zero(values, num_bits, search):
    levels, x = Levels(num_bits), torch.tensor([values], dtype=torch.float32)
    find = scale_search.search_asymmetric if search else uniform.asymmetric
    scale, zero = find(x, levels, torch.float32)
    codes = uniform.encode(x, scale, zero, levels)
    assert levels.low <= zero.item() <= levels.high and zero.item() == int(zero.item())
    assert codes.min() >= levels.low and codes.max() <= levels.high
    assert uniform.decode(uniform.encode(torch.zeros(1, 1), scale, zero, levels), scale, zero).item() == 0
    if not search:
        assert (uniform.decode(codes, scale, zero) - x).abs().max().item() <= scale.item() * 1.001


@settings(max_examples=60, deadline=None)
@given(groups, st.integers(2, 8))
def test_the_search_is_never_worse_than_its_best_candidate(values, num_bits):
    """c = 1 is not on the grid, so absmax may win by the step of the grid at most; on the whole the search must win."""
    levels, x = Levels(num_bits), torch.tensor([values], dtype=torch.float32)
    found = scale_search.search(x, levels, torch.float32)
    plain = uniform.stored(uniform.absmax_scale(x, levels), torch.float32)

    def error(scale):
        return (uniform.decode(uniform.encode(x, scale, None, levels), scale, None) - x).double().square().sum().item()

    energy = x.double().square().sum().item()
    assert error(found) <= max(error(plain) * 1.25, energy * 1e-4)


@pytest.mark.slow
def test_the_search_wins_on_real_shapes():
    x = torch.randn(400, 128, generator=torch.Generator().manual_seed(0))
    for num_bits, gain in ((4, 0.8), (3, 0.7), (2, 0.55)):
        levels = Levels(num_bits)
        errors = []
        for scale in (uniform.absmax_scale(x, levels), scale_search.search(x, levels, torch.float16)):
            errors.append((uniform.decode(uniform.encode(x, scale, None, levels), scale, None) - x).square().sum().item())
        assert errors[1] < gain * errors[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [0.0, 1e-44, 1e-38, 1e-8, 1.0, 6e4, 3e38])
def test_scales_at_the_edges_are_finite_and_not_zero(dtype, size):
    x = torch.tensor([[size, -size / 2, 0.0]])
    for levels in (Levels(2), Levels(4), Levels(8), Levels(8, floating=True)):
        for scale in (uniform.stored(uniform.absmax_scale(x, levels), dtype), scale_search.search(x, levels, dtype), uniform.asymmetric(x, levels, dtype)[0]):
            assert torch.isfinite(scale).all() and (scale != 0).all()
            codes = uniform.encode(x, scale, None, levels)
            assert torch.isfinite(codes).all() and codes.min() >= levels.low and codes.max() <= levels.high


def test_fp8_rounds_to_nearest_and_saturates():
    levels = Levels(8, floating=True)
    x = torch.tensor([[0.0, 1.0, 17.0, 18.0, 447.0, 460.0, 1e9, -1e9, 2.0**-10]])
    assert levels.round(x).tolist() == [[0.0, 1.0, 16.0, 18.0, 448.0, 448.0, 448.0, -448.0, 0.0]]
