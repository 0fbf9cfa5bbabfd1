"""What is differentiated: drawn by position and seed alone, and unbiased for what the output does."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from worker.losses import _inverse, labelled, losses
from worker.samples.data import Batch


def batch(count: int, mask: torch.Tensor | None = None, labels=None, start: int = 0) -> Batch:
    return Batch({}, mask, labels, tuple(range(start, start + count)))


def test_a_draw_has_the_models_own_frequencies():
    logits = torch.tensor([[0.0, 1.0, -torch.inf, 2.0]])
    drawn = torch.cat([_inverse(logits, torch.tensor([[u / 1000]], dtype=torch.float64)) for u in range(1000)])
    expected = logits.softmax(-1)[0]
    assert torch.allclose(torch.bincount(drawn.flatten(), minlength=4) / 1000, expected, atol=2e-3)
    assert _inverse(torch.tensor([[-torch.inf, 0.0]]), torch.zeros(1, 1, dtype=torch.float64)).item() == 1  # what cannot be is not drawn


@pytest.mark.parametrize("task, shape", [("encoder", (4, 6)), ("classifier", (4, 3)), ("causal-lm", (4, 5, 7)), ("any", (4, 2, 3))])
def test_what_is_drawn_depends_on_seed_and_position_alone(task, shape):
    output = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(4, 5, dtype=torch.bool) if task == "causal-lm" else None
    whole = losses(task, output, batch(4, mask), 3)
    alone = torch.cat([losses(task, output[i : i + 1], batch(1, None if mask is None else mask[:1], start=i), 3) for i in range(4)])
    assert whole.shape == (4,) and torch.allclose(whole, alone) and not torch.allclose(whole, losses(task, output, batch(4, mask), 4))


def test_padding_has_no_part():
    output = torch.randn(2, 6, 5, requires_grad=True)
    mask = torch.tensor([[True] * 4 + [False] * 2, [True] * 6])
    for task, last in (("causal-lm", 3), ("seq2seq", 4), ("any", 4)):
        (g,) = torch.autograd.grad(losses(task, output, batch(2, mask), 0).sum(), output)
        assert bool(g[0, :last].any(-1).all()) and not bool(g[0, last:].any())


def test_squared_gradients_of_drawn_text_are_the_curvature_of_kl():
    """Over many draws the mean of g^2 in a direction is twice what KL grows by, to second order."""
    torch.manual_seed(0)
    logits, direction = torch.randn(1, 2, 5, dtype=torch.float64), torch.randn(1, 2, 5, dtype=torch.float64)
    mask = torch.ones(1, 2, dtype=torch.bool)
    total, draws, step = 0.0, 4000, 1e-3
    for seed in range(draws):
        moved = torch.zeros((), dtype=torch.float64, requires_grad=True)
        (g,) = torch.autograd.grad(losses("causal-lm", logits + moved * direction, batch(1, mask), seed).sum(), moved)
        total += float(g) ** 2
    one, other = log_softmax(logits[0, 0], -1), log_softmax(logits[0, 0] + step * direction[0, 0], -1)
    assert total / draws == pytest.approx(2 * float(kl_div(other, one, log_target=True, reduction="sum")) / step**2, rel=0.1)


def test_squared_gradients_of_projections_are_the_squared_move_of_the_output():
    torch.manual_seed(0)
    direction, total = torch.randn(1, 8), 0.0
    for seed in range(4000):
        total += float(losses("encoder", direction, batch(1), seed)) ** 2  # linear in the output: its value is its derivative
    assert total / 4000 == pytest.approx(float(direction.square().sum()), rel=0.1)
    assert float(losses("classifier", torch.ones(1, 5), batch(1), 0)) == pytest.approx(0, abs=1e-5)  # what all classes share changes nothing


def test_labels():
    logits, classes = torch.randn(3, 4), torch.tensor([0, 3, 1])
    assert torch.equal(losses("classifier", logits, batch(3, labels=classes), 0), cross_entropy(logits, classes, reduction="none"))
    assert labelled("regressor", torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])).tolist() == [5.0]
