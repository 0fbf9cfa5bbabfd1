"""Figures of quality against slow references, on odd shapes and however the samples are cut into batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker import quality
from worker.quality import Accuracy, Cosine, Divergence, Error, Perplexity

cuts = st.lists(st.integers(0, 40), max_size=4)
seeds = st.integers(0, 1 << 30)
scales = st.sampled_from([1e-3, 1.0, 30.0])


def pair(seed: int, shape: tuple[int, ...], scale: float, apart: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    before = torch.randn(shape, generator=g) * scale
    return before, before + torch.randn(shape, generator=g) * apart * scale


def fed(meter, at: list[int], *tensors: torch.Tensor) -> dict:
    """All rows, cut at `at`."""
    bounds = sorted({0, len(tensors[0]), *(a for a in at if a < len(tensors[0]))})
    for begin, end in zip(bounds, bounds[1:], strict=False):
        meter.add(*(t[begin:end] for t in tensors))
    return meter.figures()


def softmax(row: np.ndarray) -> list[float]:
    e = [math.exp(x - max(row)) for x in row]
    return [x / sum(e) for x in e]


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 23), st.sampled_from([(1,), (7,), (3, 5), (2, 1, 3)]), seeds, scales, cuts)
def test_cosine_and_error(n, shape, seed, scale, at):
    before, after = pair(seed, (n, *shape), scale)
    x, y = (t.reshape(n, -1).numpy().astype(np.float64) for t in (before, after))
    each = [sum(a * b) / math.sqrt(sum(a * a) * sum(b * b)) for a, b in zip(x, y, strict=True)]
    got = fed(Cosine(), at, before, after)
    assert got["cosine"] == pytest.approx(sum(each) / n, abs=1e-12) and got["cosine_min"] == pytest.approx(min(each), abs=1e-12)
    error = math.sqrt(((x - y) ** 2).sum() / (x**2).sum())
    assert fed(Error(), at, before, after)["relative_output_error"] == pytest.approx(error, rel=1e-12)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 23), st.integers(1, 19), seeds, scales, cuts)
def test_divergence_and_perplexity(n, classes, seed, scale, at):
    before, after = pair(seed, (n, classes), scale)
    following = torch.randint(0, classes, (n,), generator=torch.Generator().manual_seed(seed))
    kl, before_nll, after_nll, same = [], 0.0, 0.0, 0
    for x, y, t in zip(before.double().numpy(), after.double().numpy(), following.tolist(), strict=True):
        p, q = softmax(x), softmax(y)
        kl.append(sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0 and b > 0))
        before_nll, after_nll = before_nll - math.log(p[t]), after_nll - math.log(q[t])
        same += int(np.argmax(x)) == int(np.argmax(y))
    got = fed(Divergence(), at, before, after)
    close = {"abs": 1e-9, "rel": 1e-9}
    assert got["kl"] == pytest.approx(sum(kl) / n, **close) and got["kl_max"] == pytest.approx(max(kl), **close)
    assert got["kl_p99"] == pytest.approx(float(np.quantile(kl, 0.99)), **close) and got["top1_agreement"] == same / n
    got = fed(Perplexity(), at, before, after, following)
    assert got == {"perplexity_before": pytest.approx(math.exp(before_nll / n)), "perplexity_after": pytest.approx(math.exp(after_nll / n))}


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 30), st.integers(2, 6), seeds, cuts)
def test_accuracy(n, classes, seed, at):
    before, after = pair(seed, (n, classes), 1.0, 1.0)
    labels = torch.randint(0, classes, (n,), generator=torch.Generator().manual_seed(seed))
    right = [sum(int(np.argmax(row)) == label for row, label in zip(t.numpy(), labels.tolist(), strict=True)) for t in (before, after)]
    assert fed(Accuracy(), at, before, after, labels) == {"accuracy_before": right[0] / n, "accuracy": right[1] / n}


def test_the_same_outputs_differ_in_nothing():
    x = pair(0, (9, 7), 5.0)[0]
    assert fed(Cosine(), [], x, x) == {"cosine": pytest.approx(1.0), "cosine_min": pytest.approx(1.0)}
    assert fed(Error(), [], x, x) == {"relative_output_error": 0.0}
    assert fed(Divergence(), [4], x, x) == {"kl": 0.0, "kl_p99": 0.0, "kl_max": 0.0, "top1_agreement": 1.0}


def test_rows_are_taken_in_blocks_of_bounded_size(monkeypatch):
    before, after = pair(3, (23, 11), 2.0)
    whole = fed(Divergence(), [], before, after)
    monkeypatch.setattr(quality, "_BLOCK", 30)
    assert [len(x) for x, _ in quality._blocks(before, after)] == [2] * 11 + [1]
    assert fed(Divergence(), [], before, after) == whole
    monkeypatch.setattr(quality, "_BLOCK", 3)  # less than a row
    assert fed(Divergence(), [], before, after) == whole


def test_zeros_and_large_values():
    zero, one = torch.zeros(1, 4), torch.ones(1, 4)
    assert fed(Cosine(), [], zero, zero)["cosine"] == 1.0 and fed(Cosine(), [], one, zero)["cosine"] == 0.0
    assert fed(Cosine(), [], one.double() * 1e200, one.double() * 1e-200)["cosine"] == pytest.approx(1.0)
    assert fed(Error(), [], zero, zero)["relative_output_error"] == 0.0 and fed(Error(), [], zero, one)["relative_output_error"] is None


def test_what_is_excluded_by_the_original_costs_nothing_and_by_the_other_everything():
    free, barred = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[0.0, 1.0, -math.inf]])
    assert fed(Divergence(), [], barred, barred)["kl"] == 0.0
    assert fed(Divergence(), [], barred, free)["kl"] > 1.0  # 2 of 3 classes share what three had
    assert fed(Divergence(), [], free, barred)["kl"] is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_outputs_that_are_not_finite_have_no_figure(bad):
    before, after = pair(1, (5, 4), 1.0)
    after[2, 1] = bad
    labels = before.argmax(-1)
    assert fed(Cosine(), [3], before, after) == {"cosine": None, "cosine_min": None}
    assert fed(Error(), [], before, after) == {"relative_output_error": None}
    assert fed(Divergence(), [1], before, after)["kl"] is None and fed(Divergence(), [1], before, after)["kl_max"] is None
    assert fed(Perplexity(), [], before, after, labels)["perplexity_after"] is None
    assert fed(Perplexity(), [], before, after, labels)["perplexity_before"] > 1
    if math.isnan(bad):
        assert fed(Accuracy(), [], before, before.clone().index_fill_(0, torch.tensor([2]), bad), labels) == {"accuracy_before": 1.0, "accuracy": 0.8}


def test_nothing_added_is_no_figure():
    for meter in (Cosine(), Divergence(), Perplexity(), Accuracy()):
        assert set(meter.figures().values()) == {None}
