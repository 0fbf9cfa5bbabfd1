from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.kernels.masks import from_gaps, from_mask, nonzero, to_gaps, to_mask


@given(keep=st.lists(st.booleans(), max_size=300), pad=st.sampled_from([0, 1, 254, 255, 256, 700]))
@settings(max_examples=60, deadline=None)
def test_mask_and_gaps_give_the_kept_back(keep, pad):
    keep = np.array([False] * pad + keep, bool)
    expected = np.flatnonzero(keep)
    assert np.array_equal(from_mask(to_mask(keep), len(keep)), expected)
    assert np.array_equal(from_gaps(to_gaps(keep), len(keep)), expected)


def test_gaps_as_documented():
    keep = np.zeros(600, bool)
    keep[[0, 3, 258, 599]] = True
    assert to_gaps(keep).tolist() == [0, 2, 254, 255, 85]


def test_what_goes_behind_the_end_is_an_error():
    with pytest.raises(ValueError, match="end"):
        from_mask(np.array([0b1000], np.uint8), 3)
    with pytest.raises(ValueError, match="end"):
        from_gaps(np.array([3], np.uint8), 3)


def test_both_zeros_are_zeros():
    bits = np.array([0.0, -0.0, 1e-45, -1e-45, np.nan, 1.0], np.float32).view(np.uint32)
    assert nonzero(bits).tolist() == [False, False, True, True, True, True]
