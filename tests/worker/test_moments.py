from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from worker.moments import Moments, has_moments


def rows_of(layer, x) -> torch.Tensor:
    """What is multiplied with the weight as [out, in], by a probe: the layer's outputs are linear in it."""
    inputs = layer.weight.numel() // (layer.weight.shape[1] if isinstance(layer, Conv1D) else layer.weight.shape[0])
    outputs = []
    for i in range(inputs):  # a weight of one output that is 1 at one input
        probe = torch.zeros(layer.weight.shape)
        (probe[:, 0] if isinstance(layer, Conv1D) else probe[0].reshape(-1))[i] = 1
        with torch.no_grad():
            layer.weight.data, kept = probe, layer.weight.data
            y = layer(x) - layer(torch.zeros_like(x))
            layer.weight.data = kept
        outputs.append((y[..., 0] if not isinstance(layer, nn.Conv1d | nn.Conv2d) else y[:, 0]).reshape(-1))
    return torch.stack(outputs, 1)


@pytest.mark.parametrize(
    "layer, shape",
    [
        (nn.Linear(5, 3), (2, 4, 5)),
        (nn.Linear(5, 3, bias=False), (7, 5)),
        (Conv1D(3, 5), (2, 4, 5)),
        (nn.Conv2d(2, 3, 3, stride=2, padding=1, dilation=2), (2, 2, 9, 8)),
        (nn.Conv2d(2, 3, (1, 2), padding=(0, 1)), (1, 2, 4, 4)),
        (nn.Conv1d(2, 3, 3, stride=2, padding=1), (2, 2, 9)),
    ],
)
def test_they_are_sums_over_all_that_a_weight_is_multiplied_with(layer, shape):
    assert has_moments(layer)
    torch.manual_seed(0)
    batches = [torch.randn(shape), torch.randn(shape)]
    with Moments([layer], lambda: None) as moments:
        for x in batches:
            layer(x)
    x = torch.cat([rows_of(layer, x) for x in batches]).double()
    assert moments.of(layer.weight).tokens == len(x)
    assert torch.allclose(moments.of(layer.weight).gram.double(), x.T @ x, atol=1e-3)


def test_what_is_no_plain_matrix_has_none():
    assert not any(map(has_moments, (nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(2, 2, 3, padding="same"), nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), nn.Embedding(3, 3), nn.LayerNorm(3))))


def test_padding_does_not_count():
    layer, x = nn.Linear(4, 2), torch.randn(2, 3, 4)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    with Moments([layer], lambda: mask) as moments:
        layer(x)
        layer(x.reshape(6, 4))
    kept = x[mask]
    assert torch.allclose(moments.of(layer.weight).gram, 2 * kept.T @ kept, atol=1e-5) and moments.of(layer.weight).tokens == 6


def test_layers_of_one_input_share_a_sum_and_part_when_they_are_given_others():
    q, k, o = (nn.Linear(4, 4) for _ in range(3))
    x, y, z = (torch.randn(3, 4) for _ in range(3))
    with Moments([q, k, o], lambda: None) as moments:
        q(x), k(x), o(y)
        assert moments.of(q.weight) is moments.of(k.weight) and moments.of(o.weight) is not moments.of(q.weight)
        q(y), k(z)
    assert torch.allclose(moments.of(q.weight).gram, x.T @ x + y.T @ y, atol=1e-5)
    assert torch.allclose(moments.of(k.weight).gram, x.T @ x + z.T @ z, atol=1e-5)
    assert torch.allclose(moments.of(o.weight).gram, y.T @ y, atol=1e-5)
    assert moments.of(nn.Linear(4, 4).weight) is None


def test_convolutions_share_a_sum_where_their_patches_are_the_same():
    first, same, wide, strided = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 5, 1), nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(2, 3, 1, stride=2)
    x = torch.randn(2, 2, 6, 6)
    with Moments([first, same, wide, strided], lambda: None) as moments:
        first(x), same(x), wide(x), strided(x)
    assert moments.of(first.weight) is moments.of(same.weight)
    for layer in (first, wide, strided):
        seen = rows_of(layer, x)
        assert torch.allclose(moments.of(layer.weight).gram, seen.T @ seen, atol=1e-3) and moments.of(layer.weight).tokens == len(seen)


def test_an_input_that_was_written_to_is_another():
    before, after, x = nn.Linear(4, 4), nn.Linear(4, 4), torch.randn(5, 4)
    with torch.no_grad(), Moments([before, after], lambda: None) as moments:
        before(x)
        after(x.relu_())
    assert torch.allclose(moments.of(after.weight).gram, x.T @ x, atol=1e-5) and not torch.allclose(moments.of(before.weight).gram, x.T @ x, atol=1e-5)
