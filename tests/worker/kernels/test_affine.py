"""Scales with a float offset: against slow float64 references, at the edges, and zeros that stay zeros."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.kernels import affine
from worker.kernels.affine import Unsigned

SIZES = st.sampled_from([1e-38, 1e-30, 1e-6, 1.0, 1e4, 1e30])
groups = st.tuples(st.integers(1, 40), SIZES, st.integers(0, 999), st.booleans()).map(lambda t: values(*t))


def values(n: int, size: float, seed: int, shifted: bool) -> torch.Tensor:
    """[1, 1, n], some zeros and equal values among them."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 1, n, generator=g) + 3 * shifted
    x = torch.where(torch.rand(x.shape, generator=g) < 0.2, x[..., :1], x)
    return torch.where(torch.rand(x.shape, generator=g) < 0.2, 0, x) * size


def nearest(x: np.ndarray, scale: float, offset: float, high: int, zero: bool) -> np.ndarray:
    """What x decodes to by trying every level, in float64."""
    levels = np.arange(high + 1) * scale - offset
    if zero:
        levels[0 if scale == 0 else min(high, max(0, round(offset / scale)))] = 0
    return levels[np.abs(x[:, None] - levels).argmin(1)]


def error(x: np.ndarray, scale: float, offset: float, high: int, zero: bool) -> float:
    return float(((nearest(x, scale, offset, high, zero) - x) ** 2).sum())


@settings(max_examples=50, deadline=None)
@given(groups, st.integers(2, 6), st.booleans(), st.booleans())
def test_the_nearest_levels_are_found(x, num_bits, zero, search):
    levels = Unsigned(num_bits)
    scale, offset = (affine.search(x, levels, zero=zero) if search else affine.span(x, levels, None))
    codes = affine.encode(x, scale, offset, levels, zero)
    assert codes.min() >= 0 and codes.max() <= levels.high and torch.equal(codes, codes.round())
    decoded = affine.decode(codes, scale, offset, levels, zero)
    assert not zero or (decoded[x == 0] == 0).all()
    size = float(affine.size_of(x))
    expected = nearest(x[0, 0].double().numpy() / size, scale.item() / size, offset.item() / size, int(levels.high), zero)
    found = decoded[0, 0].double().numpy() / size
    distance = np.abs(found - x[0, 0].double().numpy() / size)
    assert (distance <= np.abs(expected - x[0, 0].double().numpy() / size) + 2e-6 * (1 + abs(offset.item()) / size) + (1e-44 / size)).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 40), st.integers(0, 999), st.integers(2, 8), st.booleans(), st.booleans())
def test_least_squares_against_numpy(n, seed, num_bits, weighted, anywhere):
    g = np.random.default_rng(seed)
    x, codes = g.normal(size=n).astype(np.float32), g.integers(0, 1 << num_bits, n)
    codes = np.sort(codes)[np.argsort(np.argsort(x))]  # the larger the value, the larger the code
    w = g.integers(0, 2, n).astype(np.float32) if weighted else np.ones(n, np.float32)
    args = [torch.from_numpy(np.asarray(a, np.float32))[None, None] for a in (codes, x)]
    start = torch.full((1, 1, 1), 0.25)
    scale, offset = affine.fit(*args, start, start * 2, torch.from_numpy(w)[None, None] if weighted else None, anywhere)
    used = codes[w > 0]
    if len(np.unique(used)) < 2:
        assert scale.item() == 0.25 and offset.item() == 0.5
        return
    a = np.stack([codes * w, -w], 1).astype(np.float64)
    s, o = np.linalg.lstsq(a, x * w, rcond=None)[0]
    if not anywhere and o < 0:
        s, o = float((w * codes * x).sum() / (w * codes * codes).sum()), 0.0
    if s > 1e-4:
        assert abs(scale.item() - s) < 1e-4 * max(1, abs(s)) and abs(offset.item() - o) < 1e-4 * max(1, abs(o), s * 2**num_bits)
    alone = affine.fit_offset(*args, torch.full((1, 1, 1), 0.1), torch.from_numpy(w)[None, None])
    assert abs(alone.item() - float((w * (0.1 * codes - x)).sum() / max(1, w.sum()))) < 1e-4 * 2**num_bits


@settings(max_examples=30, deadline=None)
@given(groups, st.integers(2, 5), st.booleans())
def test_the_search_loses_no_more_than_the_range(x, num_bits, anywhere):
    levels, size = Unsigned(num_bits), float(affine.size_of(x))
    unit = x[0, 0].double().numpy() / size
    plain, found = affine.span(x, levels, None, anywhere), affine.search(x, levels, None, False, anywhere)
    before, after = (error(unit, s.item() / size, o.item() / size, int(levels.high), False) for s, o in (plain, found))
    assert after <= 1.25 * before + 1e-4 * float((unit**2).sum())
    assert anywhere or found[1].item() >= 0


def test_values_that_do_not_count_change_nothing():
    g = torch.Generator().manual_seed(3)
    x = torch.randn(50, 2, 20, generator=g) + 2
    filled = torch.nn.functional.pad(x, (0, 12))
    counted = torch.ones(32)
    counted[20:] = 0
    for anywhere in (False, True):
        for find in (lambda v, w: affine.search(v, Unsigned(3), w, False, anywhere), lambda v, w: affine.span(v, Unsigned(3), w, anywhere)):  # noqa: B023
            for a, b in zip(find(x, None), find(filled, counted), strict=True):
                assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0, -2.5, 1e-42, -3e37])
@pytest.mark.parametrize("anywhere", [False, True])
def test_constants(value, anywhere):
    x = torch.full((2, 1, 17), value)
    for scale, offset in (affine.span(x, Unsigned(4), None, anywhere), affine.search(x, Unsigned(4), None, False, anywhere)):
        decoded = affine.decode(affine.encode(x, scale, offset, Unsigned(4)), scale, offset, Unsigned(4))
        assert torch.allclose(decoded, x, rtol=1e-5, atol=1e-44)
