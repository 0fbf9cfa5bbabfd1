"""MS-SSIM and PSNR against slow float64 sums, window by window."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.kernels.similarity import EXPONENTS, filtered, ms_ssim, psnr, scales


def slow(a: np.ndarray, b: np.ndarray) -> float:
    """Of one channel, by the definition."""

    def means(x: np.ndarray, half: np.ndarray) -> np.ndarray:
        for axis in (0, 1):
            g = half[axis]
            x = np.apply_along_axis(lambda v: np.correlate(v, g, "valid"), axis, x)
        return x

    product, n = 1.0, scales(*a.shape)
    for scale in range(n):
        windows = [np.exp(-((np.arange(k) - (k - 1) / 2) ** 2) / 4.5) for k in (min(11, s) for s in a.shape)]
        windows = [w / w.sum() for w in windows]
        ma, mb, both = means(a, windows), means(b, windows), means(a * b, windows)
        va, vb = means(a * a, windows) - ma**2, means(b * b, windows) - mb**2
        value = (2 * (both - ma * mb) + (0.03 * 255) ** 2) / (va + vb + (0.03 * 255) ** 2)
        if scale == n - 1:
            value = value * (2 * ma * mb + 2.55**2) / (ma**2 + mb**2 + 2.55**2)
        product *= max(value.mean(), 0) ** (EXPONENTS[scale] / sum(EXPONENTS[:n]))
        h, w = (s // 2 * 2 for s in a.shape)
        a, b = (x[:h, :w].reshape(h // 2, 2, w // 2, 2).mean((1, 3)) if min(h, w) >= 2 else x for x in (a, b))
    return product


@given(height=st.integers(1, 70), width=st.integers(1, 70), seed=st.integers(0, 9), noise=st.sampled_from((0, 4, 60)))
@settings(max_examples=15, deadline=None)
def test_it_is_the_definition_at_any_size(height, width, seed, noise):
    rng = np.random.default_rng(seed)
    a = np.clip(rng.normal(128, 40, (2, height, width)).cumsum(2) / 3, 0, 255).round()
    b = np.clip(a + rng.normal(0, noise, a.shape), 0, 255).round()
    got = ms_ssim(torch.from_numpy(a), torch.from_numpy(b))
    assert got == pytest.approx(np.mean([slow(x, y) for x, y in zip(a, b)]), abs=2e-3)
    assert noise or got == pytest.approx(1, abs=1e-6)


def test_it_has_five_scales_from_161_pixels_on():
    assert [scales(n, 400) for n in (10, 21, 22, 44, 88, 160, 161, 175, 176, 999)] == [1, 1, 2, 3, 4, 4, 4, 4, 5, 5]


def test_windows_lie_within_the_image():
    x = torch.rand(1, 30, 140)
    assert filtered(x).shape == (1, 20, 130)
    assert filtered(torch.full((1, 12, 200), 7.0)) == pytest.approx(np.full((1, 2, 190), 7.0), abs=1e-5)


def test_psnr():
    a = torch.zeros(3, 4, 4, dtype=torch.uint8)
    assert psnr(a, a) == math.inf
    assert psnr(a, a + 5) == pytest.approx(20 * math.log10(255 / 5))
