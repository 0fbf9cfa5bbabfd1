from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.kernels.planes import from_pairs, merge, split, to_pairs


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("floating", [True, False])
@given(data=st.binary(max_size=400))
@settings(max_examples=20, deadline=None)
def test_merge_inverts_split(width, floating, data):
    values = np.frombuffer(data[: len(data) // width * width], f"<u{width}")
    planes = split(values, floating)
    assert [p.dtype for p in planes] == [np.uint8] * width
    assert np.array_equal(merge(planes, floating), values)


def test_the_first_plane_of_a_float_is_its_exponent():
    exponents = np.array([0, 1, 126, 127, 255], np.uint32)
    fp32 = exponents << 23 | 0x80000000 | 0x7FFFFF  # sign and mantissa must not show
    assert split(fp32, True)[0].tolist() == exponents.tolist()
    bf16 = (fp32 >> 16).astype(np.uint16)
    assert split(bf16, True)[0].tolist() == exponents.tolist()
    assert set(split(bf16, True)[1].tolist()) == {0xFF}


@given(data=st.binary(min_size=1, max_size=300))
@settings(max_examples=50, deadline=None)
def test_pairs_and_escapes_give_the_bytes_back(data):
    values = np.frombuffer(data, np.uint8)
    top, pairs, escapes = to_pairs(values)
    assert len(pairs) == (len(values) + 1) // 2
    assert np.array_equal(from_pairs(top, pairs, escapes, len(values), len(escapes)), values)


def test_the_window_of_pairs_covers_the_common_bytes():
    values = np.repeat(np.array([3, *range(110, 125)], np.uint8), [2, *[40] * 15])
    top, _, escapes = to_pairs(values)
    assert top == 124 and escapes.tolist() == [3, 3]


def test_a_wrong_number_of_escapes_is_an_error():
    top, pairs, escapes = to_pairs(np.array([120] * 9 + [3], np.uint8))
    with pytest.raises(ValueError, match="escapes"):
        from_pairs(top, pairs, escapes, 10, 0)
    with pytest.raises(ValueError, match="escapes"):
        from_pairs(top, pairs, escapes[:0], 10, 1)
