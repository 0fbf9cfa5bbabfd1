"""What one line of a comparison tells of a job's result: taken from the child's report, which is a stranger's word, and from what its worker measured.

    bytes_before, bytes_after, ratio     of all files
    relative_error, max_relative_error   of the weights, see `worker.report.totals`
    quality                              what the reloaded result says to the calibration data beside the original
    seconds                              by stage, of the attempt that computed it
    restore_seconds                      of these, reading the result back: every tensor decoded from the result's files and held against what was meant
    peak_memory                          bytes that the largest child had resident at most, what it maps or shares included
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_TOTALS = ("bytes_before", "bytes_after", "ratio", "relative_error")
_MOST, _DEEP, _LONG = 40, 3, 100  # members of an object, objects in one another, characters


def figures(report: Mapping[str, Any], seconds: Mapping[str, float], memory: int) -> dict[str, Any]:
    """Args:
    report: parsed; empty where there is none.
    seconds: by stage.
    memory: bytes.
    """
    totals = report.get("totals")
    totals = totals if isinstance(totals, dict) else {}
    worst = totals.get("max_relative_error")
    found = {name: _number(totals.get(name)) for name in _TOTALS}
    found["max_relative_error"] = _number(worst.get("value")) if isinstance(worst, dict) else None
    found["quality"] = _bounded(report.get("quality"), _DEEP) or {}
    decoded = seconds.get("verify", seconds.get("restore"))
    return found | {"seconds": dict(seconds), "restore_seconds": decoded, "peak_memory": memory or None}


def _number(value: Any) -> float | int | None:
    return value if type(value) in (int, float) and math.isfinite(value) and abs(value) < 1 << 63 else None


def _bounded(value: Any, deep: int) -> Any:
    """Numbers, words and objects of them; None for whatever else there is."""
    if isinstance(value, dict):
        kept = {str(k)[:_LONG]: _bounded(v, deep - 1) for k, v in list(value.items())[:_MOST]} if deep else {}
        return {k: v for k, v in kept.items() if k.isprintable() and v is not None}
    if isinstance(value, str):
        return value if len(value) <= _LONG and value.isprintable() else None
    return value if isinstance(value, bool) else _number(value)
