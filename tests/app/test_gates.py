"""Gates judge the worst tensor, and a missed one names itself."""

from __future__ import annotations

import pytest

from app.errors import GateFailed
from app.gates import enforce, judge

ROWS = [
    {"name": "good", "action": "quantized", "bytes_before": 24, "relative_error": 0.1, "cosine": 0.99},
    {"name": "w", "action": "pruned", "bytes_before": 24, "relative_error": 0.25, "cosine": 0.9},
    {"name": "copied", "action": "copied", "bytes_before": 24, "relative_error": 0.0},
]
TOTAL = {"bytes_after": 100}


def test_gates_judge_the_worst_tensor():
    assert all(j["passed"] for j in judge({"max_relative_error": 0.25, "min_cosine": 0.9, "max_bytes": 100}, ROWS, TOTAL).values())
    for gate, limit in (("max_relative_error", 0.2), ("min_cosine", 0.95), ("max_bytes", 99)):
        with pytest.raises(GateFailed, match=gate) as e:
            enforce(judge({gate: limit}, ROWS, TOTAL))
        assert e.value.pointer == f"/gates/{gate}"


def test_no_gate_no_judgement():
    assert judge({"max_relative_error": None}, ROWS, TOTAL) == {}


def test_a_value_that_is_not_finite_misses_its_gate():
    rows = [dict(ROWS[0], relative_error=None, cosine=None)]
    assert not any(j["passed"] for j in judge({"max_relative_error": 1e9, "min_cosine": -1.0}, rows, TOTAL).values())
