from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.kernels.chunks import CorruptPayload, Layout, decode_chunk, encode_chunk
from worker.kernels.rans import decode, encode, encoded_bytes, frequencies

rng = np.random.default_rng(8)


def bell(count: int, num_bits: int) -> np.ndarray:
    """Codes as k-means leaves them: the middle ones frequent, those at the ends rare."""
    half = 1 << (num_bits - 1)
    return np.clip(np.rint(rng.standard_t(8, count) * half / 3) + half, 0, 2 * half - 1).astype(np.uint8)


def entropy(codes: np.ndarray) -> float:
    share = np.bincount(codes) / len(codes)
    share = share[share > 0]
    return -(share * np.log2(share)).sum() * len(codes) / 8


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_any_codes_come_back(data):
    num_bits = data.draw(st.integers(1, 8))
    codes = np.array(data.draw(st.lists(st.integers(0, (1 << num_bits) - 1), min_size=16, max_size=300)), np.uint8)
    assert np.array_equal(decode(encode(codes, num_bits), len(codes), num_bits), codes)


@pytest.mark.parametrize("num_bits", range(1, 9))
@pytest.mark.parametrize("count", [4096, 65_537, 147_456])
def test_codes_cost_their_entropy(num_bits, count):
    codes = bell(count, num_bits)
    data = encode(codes, num_bits)
    assert np.array_equal(decode(data, count, num_bits), codes)
    assert len(data) < 1.004 * entropy(codes) + 2 * (1 << num_bits) + 70
    assert abs(encoded_bytes(codes, num_bits) - len(data)) < 0.001 * len(data) + 20


@given(st.lists(st.integers(0, 1 << 20), min_size=1, max_size=256).filter(any))
def test_frequencies_add_up_and_leave_nothing_out(counts):
    counts = np.array(counts)
    found = frequencies(counts)
    assert found.sum() == 1 << 14 and ((found > 0) == (counts > 0)).all()


@given(at=st.integers(0, 2000), byte=st.integers(1, 255), cut=st.booleans())
@settings(max_examples=300, deadline=None)
def test_a_changed_byte_is_refused(at, byte, cut):
    """Or decodes to codes, where it does not show: the chunk's checksum is there for that."""
    codes = bell(3000, 4)
    data = bytearray(encode(codes, 4))
    at %= len(data)
    data[at] ^= byte
    try:
        assert decode(bytes(data[:at] if cut else data), 3000, 4).shape == (3000,)
    except ValueError:
        pass


@given(data=st.binary(max_size=300), count=st.integers(1, 400), num_bits=st.integers(1, 8))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_refused_or_codes(data, count, num_bits):
    try:
        assert decode(data, count, num_bits).shape == (count,)
    except ValueError:
        pass


def test_few_lanes_for_many_codes_are_refused():
    """A million steps of one lane would take seconds."""
    data = bytearray(encode(bell(1 << 18, 2), 2))
    data[0] = 4
    with pytest.raises(ValueError, match="lanes"):
        decode(bytes(data), 1 << 18, 2)


def test_chunks_take_it_where_whole_bits_lose():
    """Levels of k-means are used more alike than those at equal distance."""
    share = np.concatenate([np.linspace(3, 9, 8), np.linspace(9, 3, 8)])
    codes = rng.choice(16, 200_000, p=share / share.sum()).astype(np.uint8)
    data = encode_chunk(codes, Layout("codes", 4))
    assert data[0] == 3 and len(data) < 1.004 * entropy(codes)
    assert np.array_equal(decode_chunk(memoryview(data), Layout("codes", 4), len(codes)), codes)
    assert encode_chunk(rng.integers(0, 4, 200_000, dtype=np.uint8), Layout("codes", 2))[0] == 0
    with pytest.raises(CorruptPayload, match="codes"):
        decode_chunk(memoryview(data), Layout("int", 1), len(codes))
