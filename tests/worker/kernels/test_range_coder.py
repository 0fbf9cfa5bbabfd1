from __future__ import annotations

import math
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from worker.kernels.range_coder import RangeDecoder, RangeEncoder

BITS = st.lists(st.tuples(st.one_of(st.integers(1, 65535), st.sampled_from([1, 2, 22, 32768, 65514, 65535])), st.booleans()), max_size=400)


@given(bits=BITS)
@settings(max_examples=200, deadline=None)
def test_bits_come_back_whatever_their_probabilities(bits):
    coder = RangeEncoder()
    for p, bit in bits:
        coder.code(p, bit)
    data = coder.finish()
    decoder = RangeDecoder(data)
    assert [decoder.code(p) for p, _ in bits] == [int(bit) for _, bit in bits]
    cost = sum(-math.log2((p if bit else 65536 - p) / 65536) for p, bit in bits)
    assert len(data) <= cost / 8 * 1.01 + 3


def test_a_carry_goes_through_many_bytes():
    """Bits that keep the interval across a byte's edge, then one that lifts it over."""
    r = random.Random(5)
    for _ in range(300):
        bits = [(r.choice((1, 65535, 32768)), r.random() < r.choice((0.0, 0.5, 1.0))) for _ in range(r.randrange(60))]
        coder = RangeEncoder()
        for p, bit in bits:
            coder.code(p, bit)
        decoder = RangeDecoder(coder.finish())
        assert all(decoder.code(p) == bit for p, bit in bits)


@given(data=st.binary(max_size=40))
def test_any_bytes_are_bits(data):
    decoder = RangeDecoder(data)
    assert {decoder.code(p) for p in (1, 65535, 30000) * 200} <= {0, 1}
