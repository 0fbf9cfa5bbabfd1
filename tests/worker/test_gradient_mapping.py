"""Gradient mapping of whole tensors: every strategy, with and without a mask, every dtype, and what it is worth."""

from __future__ import annotations

import pytest
import torch
from gradients import Gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import checkpoint

from app.recipe import parse_recipe
from worker import gradient_mapping
from worker.encoded import Codebook, Encoded
from worker.methods import apply, plan, prepare

NAME = "x.weight"


def mapped(w: torch.Tensor, gradients: torch.Tensor, config: dict | None = None, prune: dict | None = None, name: str = NAME, **fields) -> Encoded:
    """`w` through its steps."""
    steps = [{"method": "prune"} | prune] if prune else []
    recipe = parse_recipe({"steps": [*steps, {"method": "quantize", "mapping": "gradient"} | fields]})
    c = checkpoint({name: w}, config)
    plans = plan(c, recipe, "packed")
    prepare(c, recipe, plans, statistics=Gradients({name: gradients}))
    before = w.clone()
    encoded = apply(plans[name], w)
    assert torch.equal(before, w)
    return encoded


def drawn(rows: int, columns: int, seed: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=g).to(dtype), torch.randn(4, rows, columns, generator=g) * torch.exp(torch.randn(rows, columns, generator=g))


def error(w: torch.Tensor, q: torch.Tensor, gradients: torch.Tensor) -> float:
    return float((gradients.double().square().sum(0) * (w.double() - q.double()) ** 2).sum())


STRATEGIES = [{"strategy": "tensor"}, {"strategy": "channel"}, {"group_size": 5}]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6), st.integers(1, 23), st.integers(2, 8), st.sampled_from(STRATEGIES), st.sampled_from([None, 0.4, 0.9]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]), st.integers(0, 99),
)  # fmt: skip
def test_codes_are_the_nearest_of_the_levels_that_are_stored(rows, columns, bits, strategy, sparsity, dtype, seed):
    w, gradients = drawn(rows, columns, seed, dtype)
    encoded = mapped(w, gradients, prune={"sparsity": sparsity} if sparsity else None, num_bits=bits, **strategy)
    q = encoded.quantized
    assert isinstance(q, Codebook) and encoded.action == "quantized" and q.num_bits == bits and q.levels.dtype in (torch.float16, torch.float32)
    size = strategy.get("group_size", columns)
    assert len(q.levels) == (1 if strategy.get("strategy") == "tensor" else rows * -(-columns // size)) and q.group_size == size
    assert q.levels.shape[1] <= 1 << bits and (q.levels.float().diff(dim=1) >= 0).all() and int(q.codes.max()) < q.levels.shape[1]
    assert torch.equal(encoded.dense, q.dequantize().to(dtype)) and encoded.dense.dtype == dtype
    values = w if encoded.mask is None else w * encoded.mask
    for i in range(rows):
        for j in range(columns):
            book = q.levels[0 if len(q.levels) == 1 else i * -(-columns // size) + j // size].double()
            away = (book - values[i, j].double()).abs()
            assert away[int(q.codes[i, j])] <= away.min() + 1e-6
    if sparsity:
        assert (encoded.dense[~encoded.mask] == 0).all() and not torch.signbit(encoded.dense[~encoded.mask]).any()


@pytest.mark.parametrize("strategy", [*STRATEGIES[:2], {"group_size": 25}], ids=str)
def test_gradients_decide_where_levels_stand(strategy):
    w, gradients = drawn(24, 60, 1)
    by_loss = mapped(w, gradients, num_bits=3, **strategy)
    by_size = mapped(w, torch.ones(1, 24, 60), num_bits=3, **strategy)
    assert error(w, by_loss.dense, gradients) < 0.9 * error(w, by_size.dense, gradients)
    assert (w - by_loss.dense).norm() > (w - by_size.dense).norm()


def test_it_beats_levels_at_equal_distance():
    w, gradients = drawn(32, 96, 2)
    c = checkpoint({NAME: w})
    recipe = parse_recipe({"steps": [{"method": "quantize", "num_bits": 4, "scale_search": "mse"}]})
    uniform = apply(plan(c, recipe, "packed")[NAME], w).dense
    assert error(w, mapped(w, gradients, num_bits=4).dense, gradients) < 0.5 * error(w, uniform, gradients)


def test_a_large_tensor_is_fitted_to_a_part_of_it(monkeypatch):
    monkeypatch.setattr(gradient_mapping, "_PART", 1 << 10)
    w, gradients = drawn(64, 96, 3)
    f = gradient_mapping.sensitivity(gradients.square().sum(0), None)
    whole = mapped(w, gradients, num_bits=4, strategy="tensor")
    x, g = gradient_mapping.sample(w, f, None, most=1500)
    assert 1000 < x.numel() <= 1500 and x.shape == g.shape
    columns = (torch.isclose(w, x[0, :400, None, None]).nonzero()[:, 2]).unique()
    assert len(columns) == 96  # not the same few inputs of every row
    monkeypatch.setattr(gradient_mapping, "sample", lambda *a: (x, g))
    part = mapped(w, gradients, num_bits=4, strategy="tensor")
    assert error(w, part.dense, gradients) < 1.6 * error(w, whole.dense, gradients)


def test_only_what_is_kept_is_looked_at():
    w, gradients = drawn(40, 30, 4)
    kept = torch.rand(40, 30, generator=torch.Generator().manual_seed(0)) < 0.2
    f = gradient_mapping.sensitivity(gradients.square().sum(0), kept)
    x, g = gradient_mapping.sample(w * kept, f, kept)
    assert x.shape == (1, int(kept.sum())) and (g > 0).all() and abs(float(f[kept].mean()) - 1 - gradient_mapping.FLOOR) < 1e-4


def test_a_transposed_tensor_has_its_levels_by_output():
    w, gradients = drawn(10, 6, 5)  # stored [in, out]
    name = "h.0.mlp.c_fc.weight"
    turned = mapped(w, gradients, {"model_type": "gpt2"}, name=name, num_bits=3)
    assert turned.quantized.transposed and turned.quantized.levels.shape[0] == 6
    assert torch.equal(turned.dense, mapped(w.T.contiguous(), gradients.transpose(1, 2), num_bits=3).dense.T)


def test_a_convolution():
    g = torch.Generator().manual_seed(6)
    w = torch.randn(4, 3, 3, 3, generator=g)
    encoded = mapped(w, torch.randn(2, 4, 3, 3, 3, generator=g), num_bits=2)
    assert encoded.dense.shape == w.shape and encoded.quantized.codes.shape == (4, 27)


def test_no_gradient_and_no_difference():
    w, _ = drawn(6, 20, 7)
    encoded = mapped(w, torch.zeros(1, 6, 20), num_bits=4)
    assert encoded.notes == ("no gradient reaches it: every weight counts alike",) and (w - encoded.dense).norm() < 0.15 * w.norm()
    for value in (0.0, -0.3):
        same = mapped(torch.full((3, 9), value), torch.ones(1, 3, 9), num_bits=2)
        assert torch.equal(same.dense, torch.full((3, 9), value))


@pytest.mark.parametrize("dtype, value", [(torch.float32, 1e30), (torch.float64, 1e300), (torch.bfloat16, 1e-30), (torch.float16, 60000.0)])
def test_values_of_any_size_stay_finite(dtype, value):
    w, gradients = drawn(3, 40, 8)
    w = (w.clamp(-1, 1).double() * value).to(dtype)
    encoded = mapped(w, gradients, num_bits=5)
    assert torch.isfinite(encoded.dense.double()).all()
    if value < 1e300:
        assert (w.double() - encoded.dense.double()).norm() < 0.1 * w.double().norm()
