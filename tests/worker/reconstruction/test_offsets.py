"""Learned rounding against autograd in float64, with rounding that passes gradients on."""

from __future__ import annotations

import pytest
import torch

from app.recipe import Quantize
from app.strict import validate
from worker.methods.quantize import quantize_matrix
from worker.reconstruction.offsets import Offsets
from worker.schemes import assembled, scheme_of, single

STEPS = [
    {"num_bits": 3, "group_size": 7}, {"num_bits": 2, "group_size": 8, "scale_search": "mse"}, {"num_bits": 4}, {"num_bits": 3, "strategy": "tensor"},
    {"num_bits": 2, "group_size": 7, "symmetric": False}, {"num_bits": 4, "symmetric": False, "scale_search": "mse"}, {"num_bits": 3, "strategy": "tensor", "symmetric": False},
]  # fmt: skip
KEPT = [{"num_bits": 3, "group_size": 8, "scale_bits": 6}, {"num_bits": 3, "scale_bits": 4, "symmetric": False}, {"num_bits": 2, "group_size": 9, "symmetric": False, "zero_point": "float"}]


def offsets_of(fields: dict, rows: int = 5, inputs: int = 23, kept: bool = False) -> tuple[Offsets, torch.Tensor, Quantize]:
    step = validate(Quantize, {"method": "quantize"} | fields)
    w = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(4))
    mask = torch.rand(rows, inputs, generator=torch.Generator().manual_seed(5)) > 0.4 if kept else None
    w = w if mask is None else w * mask
    scheme = scheme_of(step, w, torch.float32)
    x = single(w, scheme)
    if step.strategy == "tensor":
        from dataclasses import replace

        found = replace(scheme, group_size=w.numel()).parameters(x.reshape(1, -1))
    else:
        found = scheme.parameters(x)
    return Offsets(w, found, scheme, mask), w, step


@pytest.mark.parametrize("fields", STEPS + KEPT, ids=str)
def test_it_begins_with_what_rounding_makes(fields):
    offsets, w, step = offsets_of(fields)
    plain = quantize_matrix(w, step, torch.float32)
    assert torch.equal(offsets.values(), plain.dequantize())
    assert torch.equal(assembled(offsets.scheme, offsets.scheme.stored(offsets.codes()), offsets.parameters(), step).dequantize(), plain.dequantize())


def through(x: torch.Tensor) -> torch.Tensor:
    return x + (x.round() - x).detach()


def reference(offsets: Offsets, w: torch.Tensor, state: list[torch.Tensor]) -> torch.Tensor:
    """Values [O, I] in float64, of V [O, I] and factors."""
    v, *factors = state
    low, high, size = offsets.scheme.levels.low, offsets.scheme.levels.high, offsets.w.shape[-1]
    spread = lambda t: t.repeat_interleave(size, 1)[:, : w.shape[1]].expand(w.shape)  # noqa: E731
    s0 = offsets.found.scale.double()
    if len(factors) == 1:
        s = spread(s0 * factors[0])
        return through(w / s + v).clamp(low, high) * s
    z0 = offsets.found.zero_point.double()
    bottom, top = factors[0] * (low - z0) * s0, factors[1] * (high - z0) * s0
    s = (top - bottom) / (high - low)
    z = spread(through(low - bottom / s).clamp(low, high))
    s = spread(s)
    return ((through(w / s + v) + z).clamp(low, high) - z) * s


@pytest.mark.parametrize("fields", STEPS, ids=str)
def test_a_step_goes_against_the_signs_of_the_gradients(fields):
    offsets, w, _ = offsets_of(fields)
    g = torch.Generator().manual_seed(6)
    for _ in range(3):  # away from the start, where nothing is between two codes
        offsets.step(torch.randn(w.shape, generator=g), 0.11, 0.03)
    gradient = torch.randn(w.shape, generator=g)
    v = offsets.state[0].flatten(1)[:, : w.shape[1]]
    state = [t.double().requires_grad_() for t in (v, *offsets.state[1:])]
    values = reference(offsets, w.double(), state)
    torch.testing.assert_close(values.float(), offsets.values(), rtol=1e-5, atol=1e-5)
    expected = torch.autograd.grad((values * gradient.double()).sum(), state)
    before = offsets.state
    offsets.step(gradient, 0.01, 0.002)
    moved = [(b - a) / r for a, b, r in zip(before, offsets.state, (0.01, 0.002, 0.002))]
    free = v.abs() < 0.48
    assert torch.equal(moved[0].flatten(1)[:, : w.shape[1]].round()[free], -expected[0].sign().float()[free])
    for step, of in zip(moved[1:], expected[1:], strict=True):
        sure = of.abs() > 1e-4
        assert sure.any() and torch.equal(step.round()[sure], -of.sign().float()[sure])


@pytest.mark.parametrize("fields", STEPS + KEPT, ids=str)
def test_offsets_and_factors_stay_in_their_bounds_and_pruned_weights_zero(fields):
    offsets, w, step = offsets_of(fields, kept=True)
    for _ in range(9):
        offsets.step(torch.randn(w.shape, generator=torch.Generator().manual_seed(1)), 0.2, 0.2)
    assert float(offsets.state[0].abs().max()) <= 0.5 and all(bool(((f >= 0.5) & (f <= 1.5)).all()) for f in offsets.state[1:])
    assert not bool(offsets.values()[w == 0].any())
    stored = assembled(offsets.scheme, offsets.scheme.stored(offsets.codes()), offsets.parameters(), step).dequantize()
    assert torch.equal(stored, offsets.values())
