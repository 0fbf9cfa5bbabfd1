from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from worker.kernels.grid import FINEST, coarsest

values = arrays(np.float64, st.integers(1, 40), elements=st.floats(-50, 50))


def cost(x: list[float], f: list[float], price: float, step: float) -> float:
    """What `coarsest` minimises, one value after the other."""
    multiples = [round(v / step) for v in x]
    distortion = sum(w * (v - m * step) ** 2 for v, w, m in zip(x, f, multiples, strict=True))
    return distortion + price * sum(-math.log2(multiples.count(m) / len(x)) for m in multiples)


@settings(max_examples=60, deadline=None)
@given(values, st.floats(1e-6, 10), st.integers(0, 99))
def test_no_other_power_of_two_is_cheaper(x, price, seed):
    f = np.random.default_rng(seed).random(len(x))
    found = coarsest(torch.tensor(x), torch.tensor(f), price)
    top = max(map(abs, x))
    if top < torch.finfo(torch.float32).tiny:
        assert found is None
        return
    assert math.log2(found).is_integer()
    first = math.ceil(math.log2(top))
    others = [cost(x, f, price, 2.0**e) for e in range(first, first - FINEST, -1)]
    assert cost(x, f, price, found) <= min(others) * (1 + 1e-9) + 1e-12


def test_dearer_bits_make_a_coarser_grid():
    x, f = torch.linspace(-1, 1, 101), torch.ones(101)
    steps = [coarsest(x, f, price) for price in (1e-6, 1e-4, 1e-2)]
    assert steps == sorted(steps) and steps[0] < steps[-1]


def test_without_a_price_nothing_is_rounded():
    assert coarsest(torch.ones(3), torch.ones(3), 0.0) is None
    assert coarsest(torch.zeros(3), torch.ones(3), 1.0) is None
    assert coarsest(torch.empty(0), torch.empty(0), 1.0) is None
