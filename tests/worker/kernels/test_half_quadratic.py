"""Half-quadratic offsets against the published iteration in float64 numpy, and what they are for: the sum of |error|."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from worker.kernels import affine, half_quadratic
from worker.kernels.affine import Unsigned


def reference(x: np.ndarray, scale: float, offset: float, high: int) -> float:
    """The iteration in its own terms, w_r = (q - zero) / s with s = 1 / scale; the zero of least sum |error| that it meets."""
    p, beta, zero, found = 0.7, 1.0, offset / scale, []
    for _ in range(20):
        q = np.clip(np.round(x / scale + zero), 0, high)
        d = x / scale - (q - zero)
        found.append((np.abs(d).sum(), zero))
        with np.errstate(divide="ignore"):
            e = np.sign(d) * np.maximum(0, np.abs(d) - np.abs(d) ** (p - 1) / beta)
        zero, beta = np.mean(q - (x / scale - e)), beta * 1.01
    return min(found)[1] * scale


@pytest.mark.parametrize("num_bits", [2, 3, 4])
@pytest.mark.parametrize("size", [1e-30, 0.02, 1e30])
def test_the_published_iteration(num_bits, size):
    x = torch.randn(20, 1, 48, generator=torch.Generator().manual_seed(num_bits)) * size
    levels = Unsigned(num_bits)
    scale, start = affine.span(x, levels, None, anywhere=True)
    found = half_quadratic.offset(x, scale, start, levels, anywhere=True)
    same = found_sum = expected_sum = 0

    def distance(n: int, offset: float) -> float:
        """Sum |error| in float64, in units of `size`."""
        w, s = x[n, 0].double().numpy() / size, scale[n].item() / size
        return float(np.abs(w - (np.clip(np.round((w + offset) / s), 0, levels.high) * s - offset)).sum())

    for n in range(len(x)):
        expected = reference(x[n, 0].double().numpy() / size, scale[n].item() / size, start[n].item() / size, int(levels.high))
        same += abs(found[n].item() / size - expected) < 1e-3 * scale[n].item() / size
        found_sum, expected_sum = found_sum + distance(n, found[n].item() / size), expected_sum + distance(n, expected)
    assert same >= 12 and abs(found_sum / expected_sum - 1) < 0.002  # a code on the edge between two may fall the other way, and another offset be as good


def test_the_norm_falls_for_every_group_and_outliers_count_less():
    x = torch.randn(200, 1, 64, generator=torch.Generator().manual_seed(0))
    x[:, :, 0] *= 8
    levels = Unsigned(3)
    scale, start = affine.span(x, levels, None, anywhere=True)

    def norm(offset):
        return (affine.decode(affine.encode(x, scale, offset, levels), scale, offset, levels) - x).abs().sum(-1)

    found = half_quadratic.offset(x, scale, start, levels, anywhere=True)
    assert (norm(found) <= norm(start) * (1 + 1e-5)).all() and norm(found).sum() < 0.99 * norm(start).sum()


def test_what_does_not_count_and_what_may_not_be_negative():
    x = torch.randn(30, 1, 20, generator=torch.Generator().manual_seed(4)) + 2
    filled, counted = torch.nn.functional.pad(x, (0, 4)), torch.tensor([1.0] * 20 + [0] * 4)
    scale, start = affine.span(x, Unsigned(3), None, anywhere=True)
    alone, padded = half_quadratic.offset(x, scale, start, Unsigned(3), None, False, True), half_quadratic.offset(filled, scale, start, Unsigned(3), counted, False, True)
    assert torch.allclose(alone, padded, rtol=1e-4, atol=1e-5)
    assert (half_quadratic.offset(x, scale, start.clamp(min=0), Unsigned(3)) >= 0).all()
