from __future__ import annotations

import random
from decimal import Decimal, getcontext

import pytest

from worker.kernels.mixing import RATE, SQUASH, STRETCH, Mixed
from worker.kernels.range_coder import RangeDecoder, RangeEncoder


def test_the_tables_are_those_of_exact_arithmetic():
    """Held against 50 digits; what would be rounded stays so far from a half that any double finds the same."""
    getcontext().prec = 50
    half = Decimal("0.5")
    for i in range(4096):
        x = 256 * (Decimal(2 * i + 1) / (8191 - 2 * i)).ln()
        assert STRETCH[i] == max(-2047, min(2047, int((x + half).to_integral_value("ROUND_FLOOR")))) and abs(x % 1) - half != 0
        assert abs(abs(x) % 1 - half) > Decimal("0.00009")
    for d in range(-2047, 2048):
        x = 65536 / (1 + (Decimal(-d) / 256).exp())
        assert SQUASH[d] == int((x + half).to_integral_value("ROUND_FLOOR")) and abs(x % 1 - half) > Decimal("0.00009")
    assert 0 < min(SQUASH[d] for d in range(-2047, 2048)) and max(SQUASH) < 65536 and RATE[0] < 65536


@pytest.mark.parametrize("share, most", [(0.01, 0.10), (0.3, 0.93), (0.999, 0.03)])
def test_a_mixed_coder_learns_how_frequent_bits_are(share, most):
    r = random.Random(1)
    bits = [r.random() < share for _ in range(20_000)]
    coder = RangeEncoder()
    mixed = Mixed(coder, (1, 4, 2), 1)
    where = [(0, r.randrange(4), r.randrange(2)) for _ in bits]
    for (a, b, c), bit in zip(where, bits, strict=True):
        mixed.code(a, b, c, 0, bit)
    data = coder.finish()
    assert len(data) * 8 / len(bits) < most
    mixed = Mixed(RangeDecoder(data), (1, 4, 2), 1)
    assert [mixed.code(*contexts, 0) for contexts in where] == bits


def test_probabilities_stay_within_their_bits():
    """The largest steps, the longest runs: no state leaves 32 bits."""
    mixed = Mixed(RangeEncoder(), (1, 1, 1), 1)
    for bit in [1] * 3000 + [0] * 3000 + [1, 0] * 500:
        mixed.code(0, 0, 0, 0, bit)
        assert all(0 <= table[0] < 1 << 32 for table in mixed.tables)
