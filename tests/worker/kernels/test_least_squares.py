"""Against normal equations in float64, a row at a time."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.kernels import least_squares


def reference(w, mask, gram, products, damping):
    w, gram, products = (t.double() for t in (w, gram, products))
    d, out = damping * gram.diagonal().mean(), torch.zeros_like(w)
    for row, kept in enumerate(mask):
        at = kept.nonzero()[:, 0]
        if len(at):
            out[row, at] = torch.linalg.solve(gram[at][:, at] + d * torch.eye(len(at)), products[row, at] + d * w[row, at])
    return out


def drawn(seed: int, rows: int, columns: int, samples: int, kept: float):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, columns, generator=generator, dtype=torch.float64) @ torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    w = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return x, w, torch.rand(rows, columns, generator=generator) < kept


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.integers(0, 7), st.integers(1, 13), st.integers(1, 40), st.sampled_from([0.0, 0.3, 0.7, 1.0]), st.sampled_from([0.01, 0.1]))
def test_it_is_the_solution_of_each_rows_equations(seed, rows, columns, samples, kept, damping):
    x, w, mask = drawn(seed, rows, columns, samples, kept)
    gram = x.T @ x
    products = w @ gram + torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = least_squares.solve(w, mask, gram, products, damping, 60)
    assert not found[~mask].any() and found.shape == w.shape
    torch.testing.assert_close(found, reference(w, mask, gram, products, damping), rtol=1e-5, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.integers(1, 25))
def test_every_iteration_leaves_less_of_the_error(seed, samples):
    x, w, mask = drawn(seed, 6, 16, samples, 0.4)
    gram = x.T @ x
    errors = [float(((least_squares.solve(w, mask, gram, w @ gram, 1e-9, n) - w) @ x.T).square().sum()) for n in (0, 1, 3, 10, 60)]
    assert all(after <= before + 1e-6 * errors[0] for before, after in zip(errors, errors[1:], strict=False))
    torch.testing.assert_close(errors[0], float(((w * mask - w) @ x.T).square().sum()))


def test_parts_of_the_rows_come_to_the_same(monkeypatch):
    x, w, mask = drawn(1, 20, 12, 50, 0.5)
    gram = (x.T @ x).float()
    whole = least_squares.solve(w.float(), mask, gram, w.float() @ gram)
    monkeypatch.setattr(least_squares, "_PART", 36)
    torch.testing.assert_close(least_squares.solve(w.float(), mask, gram, w.float() @ gram), whole)


def test_inputs_that_are_all_zero_leave_what_is_left():
    w = torch.randn(3, 5)
    mask = w > 0
    assert torch.equal(least_squares.solve(w, mask, torch.zeros(5, 5), torch.zeros(3, 5)), w * mask)
