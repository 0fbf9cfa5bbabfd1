from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.kernels import native
from worker.kernels.chunks import CorruptPayload, Layout, decode_chunk, encode_chunk
from worker.kernels.contexts import bucket, decode, encode, likely_lag

rng = np.random.default_rng(4)


def entropy(codes: np.ndarray) -> float:
    """Bytes by the frequencies of single codes."""
    share = np.bincount(codes.reshape(-1)) / codes.size
    share = share[share > 0]
    return -(share * np.log2(share)).sum() * codes.size / 8


def sparse(rows: int, columns: int, density) -> np.ndarray:
    """Codes of 16 levels, zero at 8, the share `density` (of each value or all) kept."""
    codes = np.clip(np.rint(rng.normal(0, 4, (rows, columns))), -7, 7).astype(int) + 8
    return np.where(rng.random((rows, columns)) < density, codes, 8).astype(np.uint8)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_codes_come_back(data):
    codes = np.array(data.draw(st.lists(st.one_of(st.integers(0, 255), st.sampled_from([0, 3, 255])), min_size=1, max_size=150)), np.uint8)
    columns = data.draw(st.integers(1, 200))
    assert np.array_equal(decode(encode(codes, columns), len(codes), columns), codes)


@pytest.mark.skipif(not native.available(), reason="the native kernels were not built here")
@given(seed=st.integers(0, 999), count=st.integers(1, 400), columns=st.integers(1, 500), levels=st.sampled_from([1, 2, 16, 256]), share=st.sampled_from([0.02, 0.5, 1.0]))
@settings(max_examples=80, deadline=None)
def test_compiled_bits_are_those_of_the_reference(seed, count, columns, levels, share):
    own = np.random.default_rng(seed)
    codes = np.where(own.random(count) < share, own.integers(0, levels, count), levels // 2).astype(np.uint8)
    hostile = b"\7" + bytes(own.integers(0, 9, 2, np.uint8)) + b"\1\0\0" + own.bytes(20)  # a lag of some 260

    def made() -> tuple:
        data = encode(codes, columns)
        try:
            wild = decode(hostile, count, columns).tobytes()
        except ValueError:
            wild = None
        return data, decode(data, count, columns).tobytes(), wild

    with pytest.MonkeyPatch.context() as m:
        m.setattr(native, "available", lambda: False)
        expected = made()
    assert made() == expected and expected[1] == codes.tobytes()


@given(data=st.binary(max_size=60), count=st.integers(1, 300), columns=st.integers(1, 400))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_refused_or_codes(data, count, columns):
    try:
        assert decode(data, count, columns).shape == (count,)
    except ValueError:
        pass


@pytest.mark.parametrize("head", [b"", b"\0\4\1\0\0", b"\0\x09\1\0\0\0", b"\0\4\0\0\0\0", b"\0\4\1\0\x10\0"])
def test_impossible_heads_are_refused(head):
    with pytest.raises(ValueError, match="contexts"):
        decode(head + b"abcd" * (len(head) == 6), 10, 5)


def test_what_has_no_structure_costs_its_entropy_and_what_is_learned():
    codes = sparse(200, 300, 0.06)
    assert len(encode(codes.reshape(-1), 300)) < 1.03 * entropy(codes) + 60


def test_columns_and_rows_of_their_own_density_cost_less():
    """Against the entropy of flags and codes by themselves."""
    columns, rows = rng.gamma(0.5, 0.08, 300), rng.gamma(2, 0.5, (200, 1))
    codes = sparse(200, 300, np.minimum(0.9, columns * rows))
    assert len(encode(codes.reshape(-1), 300)) < 0.92 * entropy(codes)


def test_neighbours_of_like_sign_cost_less_at_the_period_of_the_row():
    """Rows of pictures of 20 x 20, with blots of one sign in them."""
    pictures = rng.normal(0, 1, (100, 20, 20))
    for _ in range(2):
        pictures = sum(np.roll(pictures, by, axis) for by in (-1, 0, 1) for axis in (1, 2))
    limit = np.quantile(np.abs(pictures), 0.9)
    codes = np.where(np.abs(pictures) > limit, np.where(pictures > 0, 10, 5) + rng.integers(0, 3, pictures.shape), 8).astype(np.uint8).reshape(-1)
    assert likely_lag(codes != 8, 400) == 20
    assert len(encode(codes, 400)) < 0.85 * entropy(codes)


def test_a_lag_needs_a_reason():
    noise = rng.random(30_000) < 0.1
    assert likely_lag(noise, 300) == 300 and likely_lag(noise[:200], 300) == 300 and likely_lag(np.ones(1, bool), 1) == 1


def test_buckets_are_two_a_power_of_two():
    assert [bucket(x) for x in (0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 16, 4095)] == [0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 7, 8, 23]


@pytest.mark.parametrize("layout", [Layout("codes", 4), Layout("float", 2)], ids=str)
def test_chunks_are_coded_in_contexts_where_columns_are_known(layout):
    values = sparse(60, 50, 0.05).reshape(-1)
    if layout.kind == "float":
        values = np.where(values == 8, 0, values.astype(np.uint16) + 1000).astype(np.uint16)
    data = encode_chunk(values, layout, columns=50)
    assert len(data) < len(encode_chunk(values, layout)) and np.array_equal(decode_chunk(memoryview(data), layout, 3000, 50), values)
    with pytest.raises(CorruptPayload, match="none belong"):
        decode_chunk(memoryview(data), layout, 3000)


def test_codes_in_contexts_that_exceed_their_bits_are_refused():
    values = np.where(rng.random(500) < 0.9, 0, 9).astype(np.uint8)
    data = encode_chunk(values, Layout("codes", 4), columns=20)
    assert data[0] == 5
    with pytest.raises(CorruptPayload, match="exceeds 3 bits"):
        decode_chunk(memoryview(data), Layout("codes", 3), 500, 20)
