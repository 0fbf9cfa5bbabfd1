"""Saliencies against sums in float64, term by term, on odd shapes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.kernels import saliency

KINDS = list(itertools.product(["magnitude", "gradient", "taylor", "fisher"], ["l1", "l2"]))
shapes = st.tuples(st.integers(1, 7), st.integers(1, 19))


def samples(shape: tuple[int, int], seed: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [O, I], and gradients [S, O, I] of a few samples."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g).to(dtype), torch.randn(5, *shape, generator=g) * torch.rand(shape, generator=g)


def statistic(gradients: torch.Tensor, kind: str, norm: str) -> torch.Tensor | None:
    which = saliency.statistic(kind, norm)
    return None if which is None else (gradients.abs() if which == "absolute" else gradients.square()).sum(0)


def reference(w: torch.Tensor, gradients: torch.Tensor, kind: str, norm: str) -> np.ndarray:
    """By the definition, sample by sample, in Python's own floats: l1 sums |s| and l2 s^2 of s = w, g, w g or (over all samples together) w^2 g^2."""
    out = np.zeros(w.shape)
    for i, j in itertools.product(*map(range, w.shape)):
        x, gs = w[i, j].item(), [g[i, j].item() for g in gradients]
        terms = {"magnitude": [x], "gradient": gs, "taylor": [x * g for g in gs], "fisher": [math.fsum(x * x * g * g for g in gs)]}[kind]
        out[i, j] = math.fsum(abs(t) if norm == "l1" else t * t for t in terms)
    return out


@settings(max_examples=60, deadline=None)
@given(shapes, st.sampled_from(KINDS), st.sampled_from([torch.float32, torch.bfloat16, torch.float64]), st.integers(0, 99), st.integers(1, 4), st.integers(1, 6))
def test_weights_blocks_and_channels(shape, kind, dtype, seed, rows, columns):
    w, gradients = samples(shape, seed, dtype)
    expected, g = reference(w, gradients, *kind), statistic(gradients, *kind)
    np.testing.assert_allclose(saliency.power(w, g, *kind).numpy(), expected, rtol=3e-6)
    np.testing.assert_allclose(saliency.channels(w, g, *kind).numpy(), expected.sum(1), rtol=3e-6)
    blocks = [[expected[i : i + rows, j : j + columns].sum() for j in range(0, shape[1], columns)] for i in range(0, shape[0], rows)]
    np.testing.assert_allclose(saliency.blocks(w, g, *kind, rows, columns).numpy(), blocks, rtol=3e-6)
    ranked = saliency.weights(w, g, *kind).double().abs().reshape(-1)
    order = torch.sort(ranked, stable=True).indices
    assert (np.diff(saliency.power(w, g, *kind).reshape(-1)[order].numpy()) >= 0).all()


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_taylor_with_l2_is_fisher_with_l1(norm):
    w, gradients = samples((6, 11), 1)
    g = statistic(gradients, "taylor", "l2")
    assert torch.equal(saliency.power(w, g, "taylor", "l2"), saliency.power(w, g, "fisher", "l1"))
    assert torch.equal(saliency.weights(w, g, "taylor", "l2"), saliency.weights(w, g, "fisher", norm))


def test_norms_rank_samples_differently():
    """One large gradient against many small ones: l2 prefers the first, l1 the second. Signed sums would say 0 for both."""
    gradients = torch.tensor([[[3.0, 2.0]], [[-3.0, -2.0]], [[0.0, 2.0]], [[0.0, -2.0]]])
    w = torch.ones(1, 2)
    for kind in ("gradient", "taylor"):
        (l1,), (l2,) = (saliency.weights(w, statistic(gradients, kind, norm), kind, norm) for norm in ("l1", "l2"))
        assert l1[0] < l1[1] and l2[0] > l2[1]


def test_the_largest_and_the_smallest_numbers():
    w = torch.tensor([[1e300, -1e300, 1e-300, 0.0]], dtype=torch.float64)
    scores = saliency.weights(w, torch.tensor([[0.0, 3e38, 3e38, 3e38]]), "fisher", "l1")
    assert scores.tolist() == [[0.0, math.inf, 0.0, 0.0]]
    small = torch.tensor([[1e-20, 2e-20]])
    assert saliency.weights(small, torch.full((1, 2), 1e-30), "fisher", "l1").diff().item() > 0  # 1e-70 is no float32


def test_no_rows():
    w = torch.zeros(0, 4)
    assert saliency.channels(w, w, "taylor", "l1").shape == (0,) and saliency.blocks(w, w, "fisher", "l1", 2, 3).shape == (0, 2)
