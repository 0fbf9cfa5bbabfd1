"""The compiled kernels beside their references: the same bytes, whatever the instruction set."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_values import kinds

from app.recipe import Quantize
from app.strict import validate
from worker import report
from worker.kernels import agreement, bits, library, native, select, uniform
from worker.kernels.shares import rows_of
from worker.methods import quantize
from worker.methods.apply import finite as all_finite
from worker.schemes import scheme_of

pytestmark = pytest.mark.skipif(not native.available(), reason="the native kernels were not built here")
LEVELS = range(native.use(-1) + 1) if native.available() else ()
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def best_again():
    yield
    native.use(len(native.LEVELS))


@pytest.fixture
def reference(monkeypatch):
    """Calls something with the compiled kernels out of reach."""

    def call(f):
        with monkeypatch.context() as m:
            m.setattr(native, "takes", lambda *tensors: False)
            m.setattr(native, "available", lambda: False)
            return f()

    return call


@pytest.mark.parametrize("search", ["absmax", "mse"])
@pytest.mark.parametrize(("shape", "group"), [((1, 1), None), ((3, 7), None), ((5, 128), 16), ((7, 129), 128), ((2, 1030), None), ((2, 1030), 130), ((3, 47), 32)])
def test_integers_are_those_of_the_reference(reference, shape, group, search):
    grouping = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    for kind, x in kinds(*shape, seed=7).items():
        cases = [*zip(DTYPES * 2, (2, 3, 4, 5, 7, 8), strict=True), *((dtype, "float") for dtype in DTYPES if search == "absmax")]
        for dtype, num_bits in cases:
            levels = {"type": "float", "num_bits": 8} if num_bits == "float" else {"num_bits": num_bits}
            matrix, step = x.to(dtype), validate(Quantize, {"method": "quantize", "scale_search": search} | levels | grouping)
            if not torch.isfinite(matrix).all():
                continue
            for scale_dtype in (None, torch.bfloat16):

                def whole(matrix=matrix, step=step, scale_dtype=scale_dtype):
                    q = quantize.quantize_matrix(matrix, step, scale_dtype)
                    return q.codes, q.scale, quantize.decoded(q, matrix.dtype)

                expected = reference(whole)
                for level in LEVELS:
                    native.use(level)
                    for a, b in zip(expected, whole(), strict=True):
                        assert a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8)), (kind, dtype, num_bits, native.LEVELS[level])


@pytest.mark.parametrize("search", ["absmax", "mse"])
@pytest.mark.parametrize(("shape", "group"), [((1, 1), None), ((3, 47), 32), ((2, 300), 130)])
def test_zero_points_are_those_of_the_reference(reference, shape, group, search):
    grouping = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    cases = kinds(*shape, seed=7)
    cases["positive"] = cases["plain"].abs() + 0.5
    for (kind, x), dtype, num_bits in zip(cases.items(), DTYPES * 3, (2, 3, 4, 5, 6, 7, 8, 4, 3), strict=True):
        step = validate(Quantize, {"method": "quantize", "scale_search": search, "symmetric": False, "num_bits": num_bits} | grouping)
        if not torch.isfinite(matrix := x.to(dtype)).all():
            continue

        def whole(matrix=matrix, step=step):
            q = quantize.quantize_matrix(matrix, step)
            return q.codes, q.scale, q.zero_point, quantize.decoded(q, matrix.dtype)

        expected = reference(whole)
        for level in LEVELS:
            native.use(level)
            assert all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(expected, whole(), strict=True)), (kind, native.LEVELS[level])


TWO_LEVEL = (
    {"num_bits": 4, "group_size": 32, "scale_bits": 6, "symmetric": False},
    {"num_bits": 3, "group_size": 16, "scale_bits": 6},
    {"num_bits": 2, "group_size": 100, "symmetric": False, "zero_point": "float"},
)


@pytest.mark.parametrize("fields", TWO_LEVEL, ids=["two levels and offsets", "two levels", "float offsets"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 300)])
def test_scales_with_offsets_and_of_two_levels_are_those_of_the_reference(reference, shape, fields):
    step = validate(Quantize, {"method": "quantize", "scale_search": "mse"} | fields)
    cases = kinds(*shape, seed=7)
    cases["pruned"] = torch.where(cases["plain"].abs() < 0.013, 0, cases["plain"])
    for (kind, x), dtype in zip(cases.items(), DTYPES * 3, strict=True):
        if not torch.isfinite(matrix := x.to(dtype)).all():
            continue

        def whole(matrix=matrix):
            q = quantize.quantize_matrix(matrix, step)
            parts = [p for f in (q.scale, q.offset) if f is not None for p in (f.values, f.above) if p is not None]
            return q.codes, *parts, quantize.decoded(q, matrix.dtype)

        expected = reference(whole)
        for level in LEVELS:
            native.use(level)
            for a, b in zip(expected, whole(), strict=True):
                assert a.dtype == b.dtype and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)), (kind, native.LEVELS[level])


def test_any_number_of_threads_gives_the_same():
    x = kinds(700, 300, seed=1)["heavy"]
    step = validate(Quantize, {"method": "quantize", "num_bits": 4, "scale_search": "mse", "group_size": 128})
    threads, found = torch.get_num_threads(), []
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            q = quantize.quantize_matrix(x, step)
            found.append((q.codes, q.scale, torch.tensor(native.compare(x, quantize.decoded(q, x.dtype)))))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for one in found[1:] for a, b in zip(found[0], one, strict=True))


@given(rows=st.integers(0, 5), columns=st.integers(1, 70), group=st.integers(1, 80), seed=st.integers(0, 99), zero=st.booleans(), shared=st.integers(0, 5), dtype=st.sampled_from(DTYPES))
@settings(max_examples=60, deadline=None)
def test_codes_back_to_values(rows, columns, group, seed, zero, shared, dtype):
    g = torch.Generator().manual_seed(seed)
    group = min(group, columns)
    codes = torch.randint(-128, 128, (rows, columns), generator=g, dtype=torch.int8)
    shape = (rows // shared if shared and rows % shared == 0 else rows, -(-columns // group))  # each row stands for `shared`
    scale = (torch.randn(shape, generator=g) * 10.0 ** float(torch.randint(-6, 3, (), generator=g))).half()
    zero_point = torch.randint(-128, 128, shape, generator=g, dtype=torch.int8) if zero else None
    spread = (None if t is None else rows_of(t, slice(None), rows) for t in (scale, zero_point))
    expected = uniform.dequantize(codes, *spread, group).to(dtype)
    for level in LEVELS:
        native.use(level)
        assert torch.equal(native.dequantize(codes, scale, zero_point, group, dtype, False), expected)
        held = native.dequantize(codes, scale, zero_point, group, dtype, True)
        assert torch.equal(held, expected.clamp(torch.finfo(dtype).min, torch.finfo(dtype).max) if dtype == torch.float16 else expected)


def test_one_scale_for_a_row_and_rows_of_nothing(reference):
    codes, scale = torch.arange(-4, 4, dtype=torch.int8).reshape(2, 4), torch.tensor([[0.5], [2.0]])
    for c, s, group in ((codes, scale, 2), (codes[:, :0], scale, 1), (codes[:0], scale[:0], 4)):
        assert torch.equal(uniform.dense(c, s, None, group, torch.float32), reference(lambda c=c, s=s, group=group: uniform.dense(c, s, None, group, torch.float32)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_no_number_stays_so(dtype):
    bits = torch.tensor([0x7F800001, 0x7FC00000, 0x7FFFFFFF, -1, -0x7FFFFF], dtype=torch.int32)
    codes = torch.ones(len(bits), 19, dtype=torch.int8)
    for level in LEVELS:
        native.use(level)
        assert native.dequantize(codes, bits.view(torch.float32)[:, None], None, 19, dtype, True).isnan().all()


def test_every_eighth_is_read():
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)[None]
    expected = codes.float()
    for level in LEVELS:
        native.use(level)
        for dtype in DTYPES:
            found = native.dequantize(codes, torch.ones(1, 1), None, 256, dtype, False).float()
            assert torch.equal(found.nan_to_num(7777), expected.nan_to_num(7777)) and found.isnan().sum() == 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_half_is_read_and_every_rounding_made(dtype):
    """By products of codes and scales that come to every float16 and beside it."""
    halves = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    finite = halves[torch.isfinite(halves)]
    near = torch.cat([torch.nextafter(finite, torch.full_like(finite, to)) for to in (torch.inf, -torch.inf)] + [finite, finite * 1.00024414])
    scale = near[:, None].contiguous()
    codes = torch.ones(len(near), 1, dtype=torch.int8)
    for level in LEVELS:
        native.use(level)
        assert torch.equal(native.dequantize(codes, scale, None, 1, dtype, False), scale.to(dtype))


@given(count=st.integers(0, 300), num_bits=st.integers(1, 8), bias=st.sampled_from([0, 1, 8, 128]), seed=st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_codes_to_dense_bits_and_back(count, num_bits, bias, seed):
    codes = np.random.default_rng(seed).integers(0, 1 << num_bits, count, np.uint8)
    stream = "".join(format(c, f"0{num_bits}b")[::-1] for c in codes)
    expected = np.array([int(stream[i : i + 8][::-1], 2) for i in range(0, len(stream), 8)], np.uint8)
    shifted = codes - np.uint8(bias)  # mod 256, as signed codes are
    for level in LEVELS:
        native.use(level)
        assert np.array_equal(native.pack(shifted, num_bits, bias), expected)
        assert np.array_equal(native.unpack(expected, num_bits, count, bias), shifted)


def test_more_codes_than_one_thread_takes():
    codes = np.random.default_rng(0).integers(0, 8, (1 << 17) + 5, np.uint8)
    assert np.array_equal(native.unpack(native.pack(codes, 3), 3, len(codes)), codes)


def test_bits_go_there_when_they_can(reference):
    codes = np.random.default_rng(0).integers(0, 32, 1001, np.uint8)
    assert np.array_equal(reference(lambda: bits.pack_bits(codes, 5)), packed := bits.pack_bits(codes, 5))
    assert np.array_equal(reference(lambda: bits.unpack_bits(packed, 5, 1001)), bits.unpack_bits(packed, 5, 1001))


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_told_of_arrays(reference, dtype):
    a, b = (kinds(37, 41, seed)["heavy"].to(dtype) for seed in (1, 2))
    b[::3] = 0
    b[5, 7] = -0.0
    expected = reference(lambda: report.errors(a, b))
    for level in LEVELS:
        native.use(level)
        found = report.errors(a, b)
        assert found["sparsity"] == expected["sparsity"]
        assert all(found[k] == pytest.approx(expected[k], rel=1e-12) for k in ("relative_error", "cosine", "sqnr_db"))
        kept = torch.rand(37, 41, generator=torch.Generator().manual_seed(0)) < 0.5
        assert torch.equal(native.masked(a, kept), torch.where(kept, a, torch.zeros((), dtype=dtype)))
        for place in (0, 40, 1516):
            for bad in (torch.nan, torch.inf, -torch.inf):
                c = a.clone()
                c.view(-1)[place] = bad
                assert not all_finite(c)
        assert all_finite(a) and all_finite(torch.empty(0, dtype=dtype))


@given(rows=st.integers(1, 4), columns=st.integers(2, 90), share=st.floats(0, 1), seed=st.integers(0, 99), few=st.booleans(), dtype=st.sampled_from((*DTYPES, torch.float64)))
@settings(max_examples=80, deadline=None)
def test_the_lowest(rows, columns, share, seed, few, dtype):
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = ((x * 2).round() / 2 if few else x * 10.0 ** (seed % 80 - 40)).to(dtype).nan_to_num()
    order = torch.sort(x.double().abs(), dim=1, stable=True).indices
    k = min(columns - 1, max(1, int(share * columns)))
    assert torch.equal(native.lowest_per_row(x, k), torch.zeros(x.shape, dtype=torch.bool).scatter_(1, order[:, :k], True))
    k = min(x.numel() - 1, max(1, int(share * x.numel())))
    compared = torch.float64 if dtype == torch.float64 else torch.float32
    key, ties = select.threshold(lambda: x.split(1), k, compared)
    expected = torch.zeros(x.numel(), dtype=torch.bool)
    expected[torch.sort(x.double().abs().reshape(-1), stable=True).indices[:k]] = True
    assert torch.equal(torch.cat(list(select.lowest(x.split(1), key, ties, compared))).reshape(-1), expected)


def test_the_lowest_of_more_than_one_thread_takes():
    x = torch.randn(3, 70_001, generator=torch.Generator().manual_seed(5)).bfloat16()
    key, ties = select.threshold(lambda: [x], 100_000, torch.float32)
    dropped, equal = native.lowest(x, key, ties)
    assert ties < equal and dropped.sum() == 100_000  # bfloat16 has ties
    assert torch.equal(dropped, next(select.lowest([x.float()], key, ties, torch.float32)))
    assert native.lowest_per_row(x, 7).sum(1).tolist() == [7, 7, 7]


@pytest.mark.parametrize("size", [1.0, 1e-6, 1e7, 1e-30])
def test_scales_are_stored_alike(reference, size):
    for group in (3, 16, 200):
        x = kinds(9, 61, seed=3)["heavy"] * size
        x[4] = 0
        step = validate(Quantize, {"method": "quantize", "num_bits": 4, "group_size": group})
        for level in LEVELS:
            native.use(level)
            assert scheme_of(step, x).dtype == reference(lambda step=step, x=x: scheme_of(step, x).dtype)


def test_what_does_not_fit_is_refused():
    codes = torch.zeros(2, 8, dtype=torch.int8)
    with pytest.raises(ValueError, match="scales"):
        native.dequantize(codes, torch.ones(2, 3), None, 4, torch.float32, False)
    with pytest.raises(ValueError, match="scales"):
        native.dequantize(codes, torch.ones(2, 2), torch.zeros(2, 1, dtype=torch.int8), 4, torch.float32, False)
    with pytest.raises(ValueError, match="beside"):
        native.compare(torch.zeros(3), torch.zeros(4))
    with pytest.raises(ValueError, match="bytes for"):
        native.unpack(np.zeros(3, np.uint8), 4, 8)


def test_where_it_was_not_built_the_log_says_so_once():
    command = "import importlib.util as u; u.find_spec = lambda n: None; from worker.kernels import native; print(native.available(), native.available())"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False False" and done.stderr.count("not built") == 1


def test_an_instruction_set_that_differs_is_not_used(monkeypatch, caplog):
    if len(LEVELS) == 1:
        pytest.skip("this processor has the baseline only")
    sampled = agreement.sampled
    monkeypatch.setattr(agreement, "sampled", lambda: [b"wrong"] if native.use(-1) == LEVELS[-1] else sampled())
    agreement.hold_to_baseline()
    assert native.use(-1) == LEVELS[-2] and "differ from the baseline" in caplog.text


def test_a_library_of_other_sources_is_not_used(monkeypatch, caplog):
    monkeypatch.setattr(library, "_STRUCTS", library._STRUCTS[::-1])
    assert library.loaded() is None and "other sources" in caplog.text
    monkeypatch.undo()
    monkeypatch.setitem(library._CALLS, "of_tomorrow", [])
    assert library.loaded() is None
