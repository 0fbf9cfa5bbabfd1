from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.kernels.bits import from_symbols, pack_bits, packed_bytes, to_symbols, unpack_bits


@pytest.mark.parametrize("num_bits", range(1, 9))
@given(data=st.binary(max_size=100))
@settings(max_examples=15, deadline=None)
def test_both_packings_give_the_codes_back(num_bits, data):
    codes = np.frombuffer(data, np.uint8) & np.uint8((1 << num_bits) - 1)
    packed = pack_bits(codes, num_bits)
    assert len(packed) == packed_bytes(len(codes), num_bits)
    assert np.array_equal(unpack_bits(packed, num_bits, len(codes)), codes)
    assert np.array_equal(from_symbols(to_symbols(codes, num_bits), num_bits, len(codes)), codes)


@pytest.mark.parametrize("num_bits", range(1, 9))
def test_the_stream_is_least_significant_bit_first(num_bits):
    codes = [(7 * i + 3) % (1 << num_bits) for i in range(13)]
    stream = sum(c << (i * num_bits) for i, c in enumerate(codes))
    assert pack_bits(np.array(codes, np.uint8), num_bits).tobytes() == stream.to_bytes(packed_bytes(13, num_bits), "little")


def test_symbols_hold_whole_codes():
    assert to_symbols(np.array([1, 2, 3, 4, 5], np.uint8), 3).tolist() == [1 | 2 << 3, 3 | 4 << 3, 5]
