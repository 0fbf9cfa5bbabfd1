from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.kernels.distillation import against_labels, divergence, strayed


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    e = [math.exp(v - top) for v in row]
    return [v / sum(e) for v in e]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(2, 6), st.floats(0.5, 5), st.integers(0, 99))
def test_logits_diverge_by_kullback_and_leibler(n, classes, temperature, seed):
    a, b = torch.randn(2, n, classes, generator=torch.Generator().manual_seed(seed)).unbind()
    expected = 0.0
    for row, other in zip(a.double().tolist(), b.double().tolist(), strict=True):
        q, p = softmax([v / temperature for v in row]), softmax([v / temperature for v in other])
        expected += temperature**2 * sum(y * math.log(y / x) for x, y in zip(q, p, strict=True)) / n
    assert divergence(a, b, "classifier", temperature=temperature).item() == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_padding_says_nothing():
    output, teacher = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    counted = torch.stack([divergence(output[i, j][None], teacher[i, j][None], "classifier") for i, j in ((0, 0), (0, 1), (1, 0))]).mean()
    assert divergence(output, teacher, "causal-lm", mask).item() == pytest.approx(counted.item(), rel=1e-4)
    moved = output.clone()
    moved[~mask] += 9
    assert divergence(moved, teacher, "causal-lm", mask).item() == pytest.approx(counted.item(), rel=1e-4)


def test_embeddings_by_their_angle_and_others_by_their_variance():
    assert divergence(torch.tensor([[1.0, 0]]), torch.tensor([[0, 2.0]]), "encoder").item() == pytest.approx(1)
    assert divergence(torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [2.0]]), "regressor").item() == pytest.approx(1)


@pytest.mark.parametrize("task", ["classifier", "causal-lm", "encoder", "regressor"])
def test_nothing_diverges_from_itself(task):
    x = torch.randn(3, 4, 5) if task == "causal-lm" else torch.randn(3, 4)
    assert abs(divergence(x, x, task).item()) < 1e-5


def test_labels_of_classes_of_following_tokens_and_of_numbers():
    logits = torch.randn(2, 3)
    assert against_labels(logits, torch.tensor([0, 2]), "classifier").item() == pytest.approx(
        -(math.log(softmax(logits[0].tolist())[0]) + math.log(softmax(logits[1].tolist())[2])) / 2, rel=1e-4
    )
    text, ids, mask = torch.randn(1, 3, 4), torch.tensor([[1, 2, 3]]), torch.tensor([[True, True, False]])
    assert against_labels(text, ids, "causal-lm", mask).item() == pytest.approx(-math.log(softmax(text[0, 0].tolist())[2]), rel=1e-4)
    assert against_labels(torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 1.0]), "regressor").item() == pytest.approx(2.5)


def test_hidden_states_stray_by_their_relative_errors():
    g = torch.Generator().manual_seed(0)
    own, his = ([torch.randn(2, 3, 4, generator=g) for _ in range(2)] for _ in range(2))
    mask = torch.tensor([[True, True, False], [True, False, False]])
    each = [((a[i, j] - b[i, j]).double().square().sum() / b[i, j].double().square().sum()).item() for a, b in zip(own, his, strict=True) for i, j in ((0, 0), (0, 1), (1, 0))]
    assert strayed(own, his, mask).item() == pytest.approx(sum(each) / 6, rel=1e-5)
    assert strayed([7 * h for h in own], [7 * h for h in his], mask).item() == pytest.approx(sum(each) / 6, rel=1e-5)
    assert strayed(his, his, mask).item() == 0


def test_hidden_states_of_images_count_by_the_sample():
    his = [torch.ones(2, 3, 4, 4), torch.ones(2, 5)]
    assert strayed([h * torch.tensor([1.0, 3.0]).view(-1, *[1] * (h.ndim - 1)) for h in his], his).item() == pytest.approx(2)
