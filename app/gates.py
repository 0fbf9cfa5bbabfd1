"""Gates: bounds that a result must keep, judged on the figures of its report (by the child, and anew when a result comes from the cache)."""

from __future__ import annotations

import math

from app.errors import GateFailed

ON_OUTPUTS = {"min_cosine": "cosine", "max_kl": "kl", "min_accuracy": "accuracy"}
"""Gates that are held against what the reloaded model says, and under which name the quality has that."""


def judge(gates: dict, rows: list[dict], total: dict, quality: dict | None = None) -> dict:
    """Each gate that was set, with the value it was held against.

    Args:
        quality: of the reloaded model on data (`worker.measuring`), where it was measured; a figure that it lacks fails its gate.

    Returns:
        `{gate: {limit, value, tensor, passed}}`.
    """
    judged = {}
    measured = [r for r in rows if r["action"] in ("quantized", "pruned") and r["bytes_before"]]

    def add(gate, value, tensor, passed):
        judged[gate] = {"limit": gates[gate], "value": value, "tensor": tensor, "passed": passed}

    if gates.get("max_relative_error") is not None:
        worst = max(measured, key=lambda r: math.inf if r["relative_error"] is None else r["relative_error"], default=None)
        value = worst["relative_error"] if worst else 0.0
        add("max_relative_error", value, worst and worst["name"], value is not None and value <= gates["max_relative_error"])
    for gate, figure in ON_OUTPUTS.items():
        if gates.get(gate) is not None and quality is not None:
            value = quality.get(figure)
            good = value is not None and (value <= gates[gate] if gate.startswith("max") else value >= gates[gate])
            add(gate, value, None, good)
    if gates.get("min_cosine") is not None and quality is None:
        worst = min(measured, key=lambda r: -math.inf if r["cosine"] is None else r["cosine"], default=None)
        value = worst["cosine"] if worst else 1.0
        add("min_cosine", value, worst and worst["name"], value is not None and value >= gates["min_cosine"])
    if gates.get("max_bytes") is not None:
        add("max_bytes", total["bytes_after"], None, total["bytes_after"] <= gates["max_bytes"])
    return judged


def enforce(judged: dict) -> None:
    """Raises:
    GateFailed: naming the first gate that was missed, its limit and the value.
    """
    for gate, j in judged.items():
        if not j["passed"]:
            at = f" in {j['tensor']}" if j["tensor"] else ""
            raise GateFailed(f"{gate} is {j['value']}{at}, the limit is {j['limit']}", pointer=f"/gates/{gate}", gates=judged)
