from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.kernels.adam import Moments, step


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 99), st.floats(1e-4, 0.5), st.integers(1, 12))
def test_it_goes_where_the_optimizer_of_torch_goes(seed, rate, steps):
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(5, 3, generator=generator)
    theirs = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.Adam([theirs], rate)
    ours, moments = start.clone(), Moments.like(start)
    for _ in range(steps):
        g = torch.randn(5, 3, generator=generator)
        theirs.grad = g.clone()
        optimizer.step()
        ours -= step(moments, g, rate)
    assert torch.allclose(ours, theirs.detach(), atol=1e-5)


def test_the_mean_square_has_no_bias_at_the_start():
    moments = Moments.like(torch.zeros(3))
    assert moments.mean_square().tolist() == [0, 0, 0]
    step(moments, torch.tensor([1.0, -2.0, 0.0]), 0.1)
    assert moments.mean_square().tolist() == pytest.approx([1, 4, 0], rel=1e-4)
