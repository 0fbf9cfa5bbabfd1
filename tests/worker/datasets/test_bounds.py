"""No number moves further than its bound, and what is not finite does not move at all."""

from __future__ import annotations

import numpy as np
import pytest
from data_jobs import carried_out, there_and_back
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from app.errors import InputRefused
from worker.datasets import bounds, prediction
from worker.datasets.code_blocks import CodeBlocks, block_rows

_FLOATS = st.sampled_from(["f2", "f4", "f8"]).flatmap(lambda d: npst.arrays(d, st.integers(1, 40)))


@settings(max_examples=200, deadline=None)
@given(values=_FLOATS, bound=st.sampled_from([1e-6, 1e-3, 0.02, 0.3]), relative=st.booleans())
def test_what_is_missed_is_told(values, bound, relative):
    """The reference computes with Python's floats, one number at a time."""
    absolute, share = (None, bound) if relative else (bound, None)
    grid = bounds.grid_of(values, absolute, share)
    if grid is None:
        return
    decoded = bounds.values_of(bounds.codes(values, grid), grid, values.dtype)
    missed = bounds.misses(values, decoded, absolute, share)
    for a, b, m in zip(values.tolist(), decoded.tolist(), missed.tolist(), strict=True):
        if not m:
            assert repr(a) == repr(b) or abs(a - b) <= (bound * abs(a) if relative else bound)


@pytest.mark.parametrize("relative", [False, True])
def test_few_numbers_are_missed(relative):
    values = np.random.default_rng(0).normal(size=5000).astype("f4")
    absolute, share = (None, 1e-3) if relative else (1e-3, None)
    grid = bounds.grid_of(values, absolute, share)
    codes = bounds.codes(values, grid)
    assert bounds.misses(values, bounds.values_of(codes, grid, values.dtype), absolute, share).sum() < 5
    assert len(np.unique(codes)) < (9000 if relative else 5000)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), width=st.integers(1, 40), count=st.integers(1, 900), scale=st.sampled_from([1.0, 50.0, 1e6, 1e14]))
def test_blocks_of_codes_come_back(seed, width, count, scale):
    r = np.random.default_rng(seed)
    codes = np.rint(r.normal(size=(count, width)) @ r.normal(size=(width, width)) * scale).astype(np.int64)
    out, back, at = CodeBlocks(width), CodeBlocks(width), 0
    while at < count:
        n = block_rows(at, count - at, 300)
        assert (back.decode(out.encode(codes[at : at + n]), n) == codes[at : at + n]).all()
        at += n


def test_columns_that_go_together_are_told_from_one_another():
    r = np.random.default_rng(0)
    x = np.rint(1000 * (r.normal(size=(2000, 3)) @ r.normal(size=(3, 20)) + 0.01 * r.normal(size=(2000, 20))))
    seen = prediction.Covariance(20)
    seen.add(x[:1000].astype(np.int64))
    coefficients, _ = seen.coefficients(0.25)
    assert prediction.bits(prediction.remainders(x[1000:] - seen.mean, coefficients)) < 0.7 * prediction.bits(x[1000:] - seen.mean)


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8"])
@pytest.mark.parametrize("bound", [{"max_abs_error": 0.02}, {"max_rel_error": 0.02}])
def test_a_bound_holds_on_every_value_of_an_array(dtype, bound, tmp_path):
    r = np.random.default_rng(0)
    x = (r.normal(size=(700, 6)) * 10.0 ** r.integers(-3, 3, 6)).astype(dtype)
    x[0] = [np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-7]
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in" / "d.npz", x=x, y=np.arange(700))
    report, _, back = there_and_back(tmp_path / "in", {"method": "quantize", **bound})
    got = np.load(back / "d.npz")
    assert (got["y"] == np.arange(700)).all() and got["x"].dtype == x.dtype
    a, b = x[1:].astype("f8"), got["x"][1:].astype("f8")
    assert (np.abs(a - b) <= (0.02 if "max_abs_error" in bound else 0.02 * np.abs(a))).all()
    assert got["x"][0, :5].tobytes() == x[0, :5].tobytes()
    row = next(r for r in report["rows"] if r["name"].endswith("/x"))
    assert row["action"] == "quantized" and row["values_checked"] == x.size and row["bytes_after"] < x.nbytes


@pytest.mark.parametrize("columns", [["n"], ["s"], None, ["nothing"]])
def test_whole_numbers_and_text_have_no_bound(columns, tmp_path):
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in" / "d.npz", n=np.arange(9), s=np.array(["a"] * 9))
    step = {"method": "quantize", "max_abs_error": 0.1} | ({"columns": columns} if columns else {})
    with pytest.raises(InputRefused) as e:
        carried_out(tmp_path / "in", tmp_path / "out", step)
    assert e.value.type == "not-quantizable" and e.value.pointer.startswith("/recipe/steps/0")
