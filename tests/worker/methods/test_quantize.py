"""Quantized matrices: shapes, ranges, zeros of pruned weights, and the same bytes whatever the threads."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.recipe import Quantize, parse_recipe
from app.strict import validate
from worker.encoded import Grid, Quantized
from tensors import checkpoint
from worker.methods import apply, plan
from worker.methods.quantize import quantize_matrix

schemes = st.fixed_dictionaries(
    {"num_bits": st.integers(2, 8), "symmetric": st.booleans(), "scale_search": st.sampled_from(["absmax", "mse"])},
    optional={"group_size": st.integers(1, 70)},
) | st.fixed_dictionaries(
    {"num_bits": st.integers(2, 8), "symmetric": st.booleans(), "scale_search": st.sampled_from(["absmax", "mse"])},
    optional={"scale_bits": st.integers(4, 8), "group_size": st.sampled_from([8, 16, 32, 128])},
) | st.fixed_dictionaries(
    {"num_bits": st.integers(3, 8), "type": st.just("nf"), "scale_search": st.sampled_from(["absmax", "mse"])},
    optional={"scale_bits": st.integers(4, 8), "group_size": st.sampled_from([8, 16, 32, 128])},
) | st.fixed_dictionaries(
    {"num_bits": st.integers(2, 8), "symmetric": st.just(False), "zero_point": st.just("float"), "scale_search": st.sampled_from(["absmax", "mse", "hqq"])},
    optional={"group_size": st.integers(1, 70)},
) | st.fixed_dictionaries({"num_bits": st.just(8), "type": st.just("float"), "strategy": st.sampled_from(["tensor", "channel"])})


def step(**fields) -> Quantize:
    return validate(Quantize, {"method": "quantize"} | fields)


def decoded(q) -> torch.Tensor:
    return q.dequantize()


@settings(max_examples=80, deadline=None)
@given(schemes, st.integers(1, 7), st.integers(1, 150), st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]), st.integers(0, 99))
def test_every_scheme_on_odd_shapes(fields, rows, columns, dtype, seed):
    w = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)
    q = quantize_matrix(w, step(**fields))
    groups = {"tensor": (1, 1), "channel": (rows, 1)}.get(q.params.strategy, (rows, -(-columns // q.group_size)))
    scale = q.scale.values if isinstance(q, Grid) else q.scale
    assert tuple(scale.shape) == groups and q.codes.shape == w.shape and isinstance(q, Quantized) == q.params.plain_scales
    assert ((q.offset if isinstance(q, Grid) else q.zero_point) is None) == q.params.symmetric
    half = 2 ** (q.params.num_bits - 1)
    if isinstance(q, Grid):
        assert q.codes.dtype == torch.uint8 and int(q.codes.max()) < 2 * half
        assert q.params.scale_bits is None or q.scale.above.shape == (rows, -(-columns // 256))
    elif q.params.type == "int":
        assert q.codes.dtype == torch.int8 and -half <= int(q.codes.min()) and int(q.codes.max()) < half
    error = (decoded(q) - w.float()).norm() / w.float().norm().clamp(min=1e-12)
    assert error < {2: 1.0, 3: 0.6, 4: 0.3, 5: 0.16, 6: 0.08, 7: 0.04, 8: 0.04}[q.params.num_bits] + (2 ** -q.params.scale_bits if q.params.scale_bits else 0)


@pytest.mark.parametrize("fields", [{"num_bits": 4, "group_size": 32, "scale_search": "mse"}, {"num_bits": 8}, {"num_bits": 3, "symmetric": False, "strategy": "tensor"}, {"num_bits": 4, "symmetric": False, "scale_bits": 6, "scale_search": "mse"}])
def test_the_same_bytes_with_any_number_of_threads(fields):
    w = torch.randn(300, 512, generator=torch.Generator().manual_seed(5))
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        q = quantize_matrix(w, step(**fields))
        scales = [q.scale.values, q.scale.above, q.offset.values, q.offset.above] if isinstance(q, Grid) else [q.scale]
        found.append((q.codes.numpy().tobytes(), *(t.view(torch.uint8).numpy().tobytes() for t in scales)))
    torch.set_num_threads(before)
    assert found[0] == found[1]


@pytest.mark.parametrize("fields", [{}, {"type": "nf"}, {"symmetric": False}, {"symmetric": False, "zero_point": "float"}, {"scale_bits": 6}, {"scale_bits": 6, "symmetric": False}])
@pytest.mark.parametrize("search", ["absmax", "mse", "hqq"])
def test_pruned_weights_decode_to_exactly_zero(fields, search):
    w = torch.randn(6, 64) + 3  # all on one side, so that an asymmetric range would not reach 0 by itself
    if search == "hqq" and fields.get("symmetric", True):
        pytest.skip("hqq is asymmetric")
    c = checkpoint({"x.weight": w})
    recipe = parse_recipe({"steps": [{"method": "prune"}, {"method": "quantize", "num_bits": 4, "group_size": 16, "scale_search": search} | fields]})
    encoded = apply(plan(c, recipe, "packed")["x.weight"], w)
    assert encoded.action == "quantized" and (encoded.mask.sum(1) == 32).all()
    assert (encoded.dense[~encoded.mask] == 0).all()
    if fields.get("zero_point") != "float" and search != "hqq":
        assert fields.get("type") == "nf" or (encoded.dense[encoded.mask] != 0).all()
    assert (encoded.dense - w * encoded.mask).norm() < 0.2 * w.norm()


@pytest.mark.parametrize("size", [1e-44, 1e-30, 1e-6, 1e30, 3e38])
def test_sizes_at_the_edges_keep_a_sane_error(size):
    w = torch.randn(4, 64, generator=torch.Generator().manual_seed(1)).clamp(-1, 1) * size
    q = quantize_matrix(w, step(num_bits=8, scale_search="mse"))
    assert q.scale.dtype == torch.float32 and torch.isfinite(decoded(q)).all()
    assert size < 1e-40 or ((decoded(q) / size - w / size).norm() / (w / size).norm()) < 0.02


@pytest.mark.parametrize("size", [0.0, 1e-44, 1e-37, 1e-20, 1e30, 3e37])
@pytest.mark.parametrize("fields", [{"scale_bits": 6}, {"type": "nf"}, {"scale_bits": 6, "symmetric": False}, {"zero_point": "float", "symmetric": False, "group_size": 20}])
@pytest.mark.parametrize("search", ["absmax", "mse", "hqq"])
def test_grids_at_the_edges_keep_a_sane_error(fields, size, search):
    if search == "hqq" and fields.get("symmetric", True):
        pytest.skip("hqq is asymmetric")
    w = torch.randn(4, 300, generator=torch.Generator().manual_seed(1)).clamp(-2, 2) * size
    w[1], w[2, :64] = 0, size
    found = decoded(quantize_matrix(w, step(num_bits=6, scale_search=search, **fields)))
    assert torch.isfinite(found).all() and (found[w == 0] == 0).all()
    assert size < 1e-37 or (found / size - w / size).norm() / (w / size).norm() < 0.05
    largest = decoded(quantize_matrix(w.sign() * 3e38, step(num_bits=4, **fields)))
    assert torch.isfinite(largest).all()


def test_zeros_stay_zeros():
    q = quantize_matrix(torch.zeros(3, 40), step(num_bits=4, group_size=16))
    assert (decoded(q) == 0).all() and torch.isfinite(q.scale).all()
