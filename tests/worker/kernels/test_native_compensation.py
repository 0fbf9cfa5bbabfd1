"""The compiled inner loop beside its reference: the same codes and values, whatever the instruction set."""

from __future__ import annotations

import pytest
import torch

from app.recipe import Quantize
from app.strict import validate
from worker.kernels import compensation, native, native_compensation
from worker.reconstruction.grids import Columns, Ordered
from worker.schemes import scheme_of

pytestmark = pytest.mark.skipif(not native.available(), reason="the native kernels were not built here")
LEVELS = range(native.use(-1) + 1) if native.available() else ()


@pytest.fixture(autouse=True)
def best_again():
    yield
    native.use(len(native.LEVELS))


def layer(rows: int, inputs: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(3 * inputs, inputs, generator=g) @ torch.randn(inputs, inputs, generator=g)
    return torch.randn(rows, inputs, generator=g) * 0.02, x.T @ x


def half(scores: torch.Tensor, start: int) -> torch.Tensor:
    order = scores.argsort(dim=1, stable=True)[:, : scores.shape[1] // 2]
    return torch.zeros(scores.shape, dtype=torch.bool).scatter_(1, order, True)


STEPS = [
    {"num_bits": 4, "group_size": 32, "scale_search": "mse"}, {"num_bits": 2, "group_size": 48}, {"num_bits": 8}, {"num_bits": 3, "group_size": 128, "symmetric": False},
    {"num_bits": 4, "strategy": "tensor", "symmetric": False},
]  # fmt: skip


@pytest.mark.parametrize("step", STEPS, ids=str)
@pytest.mark.parametrize(("rows", "inputs"), [(1, 1), (5, 31), (70, 300), (9, 257)])
@pytest.mark.parametrize("mask", ["none", "given", "chosen"])
def test_codes_and_values_are_those_of_the_reference(step, rows, inputs, mask, monkeypatch):
    w, gram = layer(rows, inputs, rows)
    if rows > 4:
        w[2] = 0
        w[3, : inputs // 2] *= 1e4
    step = validate(Quantize, {"method": "quantize"} | step)
    scheme, upper = scheme_of(step, w), compensation.factor(gram, 0.01)[0]
    kept = torch.rand(w.shape, generator=torch.Generator().manual_seed(3)) > 0.3 if mask == "given" else None

    def solved(grid=None) -> compensation.Solved:
        return compensation.solve(w, upper, grid or Columns(scheme, step, inputs), half if mask == "chosen" else None, kept, gram.diagonal())

    def asked() -> tuple[torch.Tensor, ...]:
        order = torch.arange(inputs).flip(0)
        return tuple(t for s in (solved(), solved(Ordered(Columns(scheme, step, inputs), order, w.flip(1), gram.diagonal()))) for t in (s.values, s.codes))

    called = []
    rounded = native_compensation.rounded
    monkeypatch.setattr(native_compensation, "rounded", lambda *a: called.append(1) or rounded(*a))
    found = []
    for level in LEVELS:
        native.use(level)
        found.append(asked())
    assert called
    monkeypatch.setattr(native_compensation, "takes", lambda *a: False)
    expected = asked()
    for one in found:
        assert all(torch.equal(a, b) for a, b in zip(one, expected, strict=True))


def test_what_is_not_at_equal_distance_has_no_line():
    w = torch.randn(4, 64)
    for fields in ({"num_bits": 4, "type": "nf"}, {"num_bits": 8, "type": "float"}, {"num_bits": 4, "symmetric": False, "zero_point": "float"}, {"num_bits": 4, "group_size": 32, "scale_bits": 6}):
        step = validate(Quantize, {"method": "quantize"} | fields)
        grid = Columns(scheme_of(step, w), step, 64)
        grid.begin_all(w, torch.ones(64))
        assert grid.line(0) is None


def test_inputs_outside_their_block_are_refused():
    w, line = torch.zeros(2, 8), compensation.Line(torch.ones(2), None, -8, 7)
    for block, inputs in (((0, 9), (0, 4)), ((4, 8), (2, 6)), ((0, 4), (2, 6))):
        with pytest.raises(ValueError, match="inputs"):
            native_compensation.rounded(w, w.clone(), torch.zeros(2, block[1] - block[0]), None, torch.eye(8), block, inputs, line)
