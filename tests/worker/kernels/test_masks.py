from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.kernels import native
from worker.kernels.masks import apart, from_gaps, from_mask, nonzero, to_gaps, to_mask, together


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


@given(seed=st.integers(0, 999), count=st.integers(0, 200), share=st.sampled_from([0.0, 0.03, 0.5, 0.97, 1.0]), width=st.sampled_from([1, 2, 4, 8]), signed=st.booleans())
@settings(max_examples=120, deadline=None)
def test_compiled_masks_are_those_of_the_reference(seed, count, share, width, signed):
    own = np.random.default_rng(seed)
    values = np.where(own.random(count) < share, own.integers(1, 1 << 8 * width, count, dtype=np.uint64, endpoint=False), 0).astype(f"<u{width}")
    if signed:
        values[own.random(count) < 0.2] = 1 << 8 * width - 1
    short = own.integers(0, 256, (count + 7) // 8, np.uint8)  # a mask that fits nothing in particular

    def made() -> list:
        mask, kept, negative = apart(values)
        out = [mask, kept, negative, together(mask, kept, count)]
        for wrong in (short, mask[:-1]):
            try:
                out.append(together(wrong, kept, count))
            except ValueError:
                out.append(None)
        return out

    with pytest.MonkeyPatch.context() as m:
        m.setattr(native, "available", lambda: False)
        expected = made()
    for level in range(native.use(-1) + 1 if native.available() else 0):
        best = native.use(-1)
        native.use(level)
        found = made()
        native.use(best)
        for a, b in zip(expected[:5], found[:5], strict=True):
            assert (a is None) == (b is None) and (a is None or (a.dtype == b.dtype and np.array_equal(a, b)))
