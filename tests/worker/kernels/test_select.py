"""Exactly k lowest with ties by position, against a stable sort."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.kernels.select import lowest, lowest_per_row, threshold


def pieces(scores: torch.Tensor, cuts: list[int]) -> list[torch.Tensor]:
    return list(torch.tensor_split(scores, sorted(c % (len(scores) + 1) for c in cuts)))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 1e-45, 1e-30, 0.5, 0.5, 1.0, 3.0, 3.4e38]) | st.floats(0, 100, width=32), min_size=1, max_size=60),
    st.integers(0, 10_000),
    st.lists(st.integers(0, 100), max_size=3),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_the_k_lowest(values, which, cuts, dtype):
    scores = torch.tensor(values, dtype=dtype)
    k = 1 + which % len(values)
    parts = pieces(scores, cuts)
    key, ties = threshold(lambda: iter(parts), k, dtype)
    got = torch.cat(list(lowest(iter(parts), key, ties, dtype))).numpy()
    expected = np.zeros(len(values), bool)
    expected[np.argsort(scores.numpy(), kind="stable")[:k]] = True
    assert (got == expected).all()


def test_per_row():
    scores = torch.tensor([[3.0, 1.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    assert lowest_per_row(scores, 2).tolist() == [[False, True, True, False], [True, True, False, False]]
    assert not lowest_per_row(scores, 0).any()


def test_bfloat16_alone_takes_one_pass_and_finds_the_same():
    scores = (torch.randn(3000, generator=torch.Generator().manual_seed(2)) * 0.02).bfloat16()
    seen = []

    def parts():
        seen.append(1)
        return iter(scores.split(1000))

    for k in (1, 2, 1500, 2999, 3000):
        seen.clear()
        mixed = [scores[:1000].float(), scores[1000:]]
        assert threshold(parts, k, torch.float32) == threshold(lambda: mixed, k, torch.float32)  # noqa: B023
        assert len(seen) == 1
