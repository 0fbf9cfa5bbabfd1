"""Gates: bounds that a result must keep, judged on the figures of its report (by the child, and anew when a result comes from the cache)."""

from __future__ import annotations

import math

from app.errors import GateFailed, InvalidJobSpec

ON_OUTPUTS = {"min_cosine": "cosine", "max_kl": "kl", "min_accuracy": "accuracy"}
"""Gates that are held against what the reloaded model says, and under which name the quality has that."""

_VECTORS = ("cosine", "cosine_min", "relative_output_error")
_CLASSES = ("kl", "kl_p99", "kl_max", "top1_agreement")
FIGURES = {
    "encoder": ("cosine", "cosine_min"),
    "causal-lm": (*_CLASSES, "perplexity_before", "perplexity_after"),
    "seq2seq": _CLASSES,
    "classifier": (*_CLASSES, *_VECTORS),
    "regressor": _VECTORS,
}
"""What is measured on data, by the task of the model; for one that is not listed, as for a regressor."""
WITH_LABELS = {"classifier": ("accuracy_before", "accuracy")}
"""What is measured beside that when each sample has the number of its class."""


def figures(task: str, labelled: bool) -> tuple[str, ...]:
    return FIGURES.get(task, _VECTORS) + (WITH_LABELS.get(task, ()) if labelled else ())


def check(gates: dict, task: str, labelled: bool, at: str = "/gates") -> None:
    """Refuse a gate on a figure that there will be none of, before anything is computed for it.

    Args:
        task: of the model.
        labelled: whether there are labels.
        at: where the bounds stand in the request.

    Raises:
        InvalidJobSpec: pointing at the gate, and naming the figures and gates that there are.
    """
    there = figures(task, labelled)
    for gate, figure in ON_OUTPUTS.items():
        if gates.get(gate) is not None and figure not in there:
            usable = [g for g, f in ON_OUTPUTS.items() if f in there]
            why = f"{gate} is held against {figure}, which is not measured of {task} models; measured are {', '.join(there)}"
            raise InvalidJobSpec(f"{why} ({at.removeprefix('/')}: {', '.join(usable)})", pointer=f"{at}/{gate}")


def judge(gates: dict, rows: list[dict], total: dict, quality: dict | None = None) -> dict:
    """Each gate that was set, with the value it was held against.

    Args:
        quality: of the reloaded model on data (`worker.measuring`), where there was data; a figure that it lacks fails its gate.

    Returns:
        `{gate: {limit, value, tensor, passed}}`, and `reason` where there is no value.
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
            if value is None:
                judged[gate]["reason"] = _missing(figure, quality)
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
            why = f"{gate} cannot be judged: {j['reason']}" if "reason" in j else f"{gate} is {j['value']}{at}, the limit is {j['limit']}"
            raise GateFailed(why, pointer=f"/gates/{gate}", gates=judged)


def _missing(figure: str, quality: dict) -> str:
    if reason := quality.get("reason"):
        return reason
    if figure in quality:
        return f"{figure} is not finite; the model's outputs overflow, before or after compression"
    there = [f for f in dict.fromkeys(sum((*FIGURES.values(), *WITH_LABELS.values()), ())) if f in quality]
    return f"{figure} was not measured; there are {', '.join(there)}"
