from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.kernels import assignment


@st.composite
def problems(draw):
    """w and F [O, I], levels [K, L], and which codebook each weight has: one, one a row, or one for every two inputs of a row."""
    rows, columns, size = draw(st.integers(1, 7)), draw(st.integers(1, 9)), draw(st.integers(1, 6))
    kind = draw(st.sampled_from(["tensor", "row", "group"]))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    groups = -(-columns // 2)
    books = {
        "tensor": torch.zeros(1, 1, dtype=torch.long),
        "row": torch.arange(rows)[:, None],
        "group": torch.arange(rows)[:, None] * groups + torch.arange(columns) // 2,
    }[kind]
    count = {"tensor": 1, "row": rows, "group": rows * groups}[kind]
    w, fisher, levels = (torch.tensor(rng.normal(size=s), dtype=torch.float32) for s in ((rows, columns), (rows, columns), (count, size)))
    levels[:, 0] = 0
    return w, fisher.square(), levels, books, rng


def cheapest(w, levels, fisher, books, extra) -> np.ndarray:
    """Level by level in float64; `extra(row, column, level)` is what the code costs."""
    books = books.expand(w.shape)
    out = np.zeros(w.shape, dtype=int)
    for r in range(w.shape[0]):
        for c in range(w.shape[1]):
            costs = [float(fisher[r, c]) * (float(w[r, c]) - float(v)) ** 2 + extra(r, c, i) for i, v in enumerate(levels[books[r, c]])]
            out[r, c] = int(np.argmin(costs))
    return out


def total(w, levels, fisher, books, codes, extra) -> float:
    books = books.expand(w.shape)
    return sum(
        float(fisher[r, c]) * (float(w[r, c]) - float(levels[books[r, c], codes[r, c]])) ** 2 + extra(r, c, int(codes[r, c]))
        for r in range(w.shape[0])
        for c in range(w.shape[1])
    )


@settings(max_examples=60, deadline=None)
@given(problems())
def test_without_a_price_every_weight_goes_to_its_nearest_level(problem):
    w, fisher, levels, books, _ = problem
    codes = assignment.assign(w, levels, books, fisher, None, None)
    best = cheapest(w, levels, fisher, books, lambda *_: 0.0)
    assert total(w, levels, fisher, books, codes, lambda *_: 0.0) <= total(w, levels, fisher, books, best, lambda *_: 0.0) * (1 + 1e-5) + 1e-9


@settings(max_examples=60, deadline=None)
@given(problems(), st.floats(1e-4, 1))
def test_with_one_distance_and_bits_are_least_together(problem, slope):
    w, fisher, levels, books, rng = problem
    kept = torch.tensor(rng.random(tuple(w.shape)) < 0.5)
    bits = assignment.code_bits(torch.tensor(rng.integers(0, levels.shape[1], 20)), levels.shape[1])
    on, off = assignment.zero_bits(kept)
    zero = torch.zeros(len(levels), dtype=torch.long)
    codes = assignment.assign(w, levels, books, fisher, zero, assignment.Price(slope, bits, on, off))

    def extra(r, c, i):
        return slope * float(off[r, c] if i == 0 else on[r, c] + bits[i])

    best = cheapest(w, levels, fisher, books, extra)
    assert total(w, levels, fisher, books, codes, extra) <= total(w, levels, fisher, books, best, extra) * (1 + 1e-5) + 1e-9


def test_parts_of_rows_make_no_difference(monkeypatch):
    w, levels = torch.randn(20, 6), torch.randn(1, 5)
    args = (levels, torch.zeros(1, 1, dtype=torch.long), torch.ones(20, 6), None, None)
    whole = assignment.assign(w, *args)
    monkeypatch.setattr(assignment, "_PART", 1)
    assert torch.equal(assignment.assign(w, *args), whole)


@settings(max_examples=60, deadline=None)
@given(problems())
def test_the_gradient_of_a_level_is_the_sum_over_its_weights(problem):
    w, fisher, levels, books, rng = problem
    codes = torch.tensor(rng.integers(0, levels.shape[1], tuple(w.shape)))
    expected = torch.zeros(levels.shape, dtype=torch.float64)
    for r in range(w.shape[0]):
        for c in range(w.shape[1]):
            expected[books.expand(w.shape)[r, c], codes[r, c]] += w[r, c].double()
    got = assignment.summed(w, codes, books.expand(w.shape), tuple(levels.shape))
    assert torch.allclose(got.double(), expected, atol=1e-5)


def test_the_gradient_of_a_level_is_what_autograd_says():
    levels = torch.randn(3, 4, requires_grad=True)
    books, codes = torch.arange(3)[:, None].expand(3, 5), torch.randint(0, 4, (3, 5))
    (levels[books, codes] ** 3).sum().backward()
    upstream = 3 * levels.detach()[books, codes] ** 2
    assert torch.allclose(assignment.summed(upstream, codes, books, (3, 4)), levels.grad, atol=1e-5)


def test_bits_are_those_of_the_shares():
    bits = assignment.code_bits(torch.tensor([0, 0, 0, 1]), 3)
    assert bits.tolist() == pytest.approx([-math.log2(3.5 / 5.5), -math.log2(1.5 / 5.5), -math.log2(0.5 / 5.5)])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_what_is_kept_costs_less_in_a_dense_column(rows, columns, seed):
    kept = torch.tensor(np.random.default_rng(seed).random((rows, columns)) < 0.4)
    on, off = assignment.zero_bits(kept)
    assert bool(((on > 0) & (off > 0)).all())
    assert torch.allclose(torch.exp2(-on) + torch.exp2(-off), torch.ones(rows, columns), atol=1e-5)
    dense = kept.sum(0)
    for a in range(columns):
        for b in range(columns):
            if dense[a] > dense[b]:
                assert bool((on[:, a] <= on[:, b]).all())
