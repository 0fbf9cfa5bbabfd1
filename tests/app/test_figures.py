"""What a child's report may bring into the table: numbers, few of them, whatever it says."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from app.figures import figures

REPORT = {
    "totals": {"bytes_before": 100, "bytes_after": 40, "ratio": 2.5, "relative_error": 0.1, "max_relative_error": {"tensor": "a", "value": 0.2}, "files": {}},
    "quality": {"task": "encoder", "cosine": {"mean": 0.98, "p1": 0.9}, "samples": 20, "rows": [1, 2]},
}


def test_the_figures_of_a_report():
    found = figures(REPORT, {"fetch": 0.5, "compress": 2.0, "verify": 0.25}, 1 << 28)
    assert found == {
        "bytes_before": 100, "bytes_after": 40, "ratio": 2.5, "relative_error": 0.1, "max_relative_error": 0.2,
        "quality": {"task": "encoder", "cosine": {"mean": 0.98, "p1": 0.9}, "samples": 20},
        "seconds": {"fetch": 0.5, "compress": 2.0, "verify": 0.25}, "restore_seconds": 0.25, "peak_memory": 1 << 28,
    }  # fmt: skip


def test_of_a_job_that_came_to_nothing():
    found = figures({}, {"fetch": 0.5}, 0)
    assert found["seconds"] == {"fetch": 0.5} and found["quality"] == {} and found["peak_memory"] is None and found["ratio"] is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=200),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["ratio", "max_relative_error", "value", "a\0", "x" * 200]) | st.text(max_size=9), inner, max_size=60),
    max_leaves=40,
)


@given(JSON, JSON)
def test_nothing_else_gets_through(totals, quality):
    found = figures({"totals": totals, "quality": quality}, {}, 5)
    text = json.dumps(found, allow_nan=False)
    assert len(text) < 1 << 19 and "\\u0000" not in text
    assert all(v is None or type(v) in (int, float) for k, v in found.items() if k not in ("quality", "seconds"))
