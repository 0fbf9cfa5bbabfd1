"""Against a plain search in float64."""

from __future__ import annotations

import pytest
import torch

from worker.kernels import input_scaling as scaling


def rounded(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """To 3 bits by row; what errors count is not asked for."""
    scale = x.abs().amax(1, keepdim=True) / 3.7 + 1e-12
    return (x / scale).round().clamp(-4, 3) * scale


def layer(rows: int, inputs: int, spread: float) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(rows * 100 + inputs)
    x = torch.randn(200, inputs, generator=g) * torch.linspace(-spread, spread, inputs).exp()
    return torch.randn(rows, inputs, generator=g), x


@pytest.mark.parametrize("rows, inputs", [(1, 1), (3, 17), (9, 40), (128, 5)])
@pytest.mark.parametrize("spread", [0.0, 2.0])
def test_the_power_is_the_one_of_least_output_error(rows, inputs, spread):
    w, x = layer(rows, inputs, spread)
    r, alpha = scaling.search(w, x.T @ x, rounded)
    errors = {}
    for k in range(20):
        size = x.double().square().sum(0).sqrt() ** (k / 20)
        factor = (1 / (size / (size.max() * size.min()).sqrt())).half().double()
        errors[k / 20] = float(((rounded(w.double() / factor, None) * factor - w.double()) @ x.double().T).square().sum())
    assert errors[alpha] <= min(errors.values()) * (1 + 1e-4) and errors[alpha] <= errors[0.0]
    assert (r is None) == (alpha == 0)
    if spread and inputs == 40:
        assert alpha > 0 and errors[alpha] < 0.9 * errors[0.0] and torch.equal(r, r.half().float())


def test_what_a_sample_of_rows_says_is_held_against_all():
    """Rows that the sample has want it, the many others do not."""
    w, x = layer(500, 24, 2.0)
    w = torch.where(torch.arange(24) < 20, w, w * 1e-3)
    gram = x.T @ x
    r, _ = scaling.search(w, gram, rounded)
    plain = scaling.error(w, None, gram.diagonal(), gram, rounded)
    assert scaling.error(w, r, gram.diagonal(), gram, rounded) <= plain


def test_inputs_that_are_always_0_are_not_scaled():
    r = scaling.scales(torch.tensor([0.0, 4.0, 1e-4, 0.0]), 0.5)
    assert r[0] == r[3] == 1 and r[1] < 1 < r[2] and torch.isfinite(scaling.scales(torch.zeros(3), 0.5)).all()
    assert torch.isfinite(scaling.scales(torch.tensor([1e-38, 1e38]), 0.95)).all()
