"""Gates judge the worst tensor, and a missed one names itself."""

from __future__ import annotations

import pytest

from app.errors import GateFailed, InvalidJobSpec
from app.gates import FIGURES, ON_OUTPUTS, check, enforce, figures, judge

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


QUALITY = {"measured": True, "task": "causal-lm", "samples": 20, "kl": 0.2, "kl_max": 1.0, "top1_agreement": 0.9}


def test_with_data_gates_judge_what_the_model_says():
    assert judge({"max_kl": 0.2}, ROWS, TOTAL, QUALITY)["max_kl"] == {"limit": 0.2, "value": 0.2, "tensor": None, "passed": True}
    assert not judge({"max_kl": 0.1}, ROWS, TOTAL, QUALITY)["max_kl"]["passed"]
    for gate, figure in (("min_cosine", "cosine"), ("min_accuracy", "accuracy")):
        assert judge({gate: 0.8}, ROWS, TOTAL, {figure: 0.8})[gate]["passed"] and not judge({gate: 0.81}, ROWS, TOTAL, {figure: 0.8})[gate]["passed"]


@pytest.mark.parametrize(
    "quality, why",
    [
        ({"measured": False, "reason": "the model cannot be run: no config.json"}, "no config.json"),
        (QUALITY, "cosine was not measured; there are kl, kl_max, top1_agreement"),
        ({"cosine": None}, "not finite"),
    ],
)
def test_a_figure_that_is_not_there_fails_its_gate_and_says_why(quality, why):
    judged = judge({"min_cosine": -1.0}, ROWS, TOTAL, quality)
    assert not judged["min_cosine"]["passed"] and judged["min_cosine"]["value"] is None
    with pytest.raises(GateFailed, match=why):
        enforce(judged)


@pytest.mark.parametrize("gate, task, there", [("min_cosine", "causal-lm", "max_kl"), ("max_kl", "encoder", "min_cosine"), ("min_accuracy", "regressor", "min_cosine")])
def test_a_gate_on_what_is_not_measured_of_such_a_model_is_refused_by_name(gate, task, there):
    with pytest.raises(InvalidJobSpec, match=rf"{ON_OUTPUTS[gate]}, which is not measured of {task} models; .*\(gates: .*{there}") as e:
        check({gate: 0.5}, task, labelled=True)
    assert e.value.pointer == f"/gates/{gate}"


@pytest.mark.parametrize("task", FIGURES)
def test_gates_on_what_is_measured_are_taken(task):
    for gate, figure in ON_OUTPUTS.items():
        if figure in figures(task, labelled=True):
            check({gate: 0.5, "max_bytes": 1}, task, labelled=True)
    check({"min_cosine": None, "max_kl": None, "min_accuracy": None}, task, labelled=False)


def test_accuracy_needs_labels():
    check({"min_accuracy": 0.5}, "classifier", labelled=True)
    with pytest.raises(InvalidJobSpec):
        check({"min_accuracy": 0.5}, "classifier", labelled=False)
