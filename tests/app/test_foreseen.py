"""What `auto` is foreseen to give: within its budget, more for more room, and refused where no choice can keep to it. `tests/worker/test_searching.py` holds it against results."""

from __future__ import annotations

import math
from itertools import accumulate

import pytest

from app.errors import BudgetNotMet
from app.estimate import estimate
from app.job_spec import parse_job
from app.outline import Outline, TensorSpec

ID = "00000000-0000-0000-0000-000000000000"
SHAPES = [(256, 256), (512, 256), (256, 512)]
WEIGHTS = sum(map(math.prod, SHAPES))


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Values are drawn of fewer weights, which takes less time."""
    monkeypatch.setattr("app.estimate._DRAWN", 1 << 12)


@pytest.fixture(scope="module")
def model() -> Outline:
    tensors = {f"l{i}.weight": TensorSpec(f"l{i}.weight", "F32", shape, 4 * math.prod(shape), "m.safetensors") for i, shape in enumerate(SHAPES)}
    tensors["l.bias"] = TensorSpec("l.bias", "F32", (512,), 2048, "m.safetensors")
    sizes = [t.nbytes for t in tensors.values()]
    files, offsets = {"m.safetensors": 1000 + sum(sizes), "config.json": 30}, dict(zip(tensors, accumulate(sizes, initial=1000)))
    return Outline(files, ("m.safetensors",), tensors, offsets, config={"model_type": "x"})


def asked(model: Outline, output: str = "packed", **budget) -> dict:
    data = {"calibration": ID} if {"min_cosine", "max_kl"} & budget.keys() else {}
    spec = parse_job({"input": ID, "preset": "auto", "budget": budget, "output": {"format": output}} | data)
    return estimate(model, spec, None)


@pytest.mark.parametrize("output", ["packed", "compressed-tensors"])
@pytest.mark.parametrize("budget", [{"ratio": 6}, {"avg_bits": 4.5}, {"max_bytes": 300_000}, {"min_cosine": 0.98}, {"max_kl": 0.1}, {"max_relative_error": 0.1}])
def test_bounds_lie_about_what_is_foreseen_and_within_the_budget(model, output, budget):
    said = asked(model, output, **budget)
    assert 0 < said["bytes_least"] <= said["bytes_after"] <= said["bytes_most"] < said["bytes_before"] and not said["exact"]
    assert said["bytes_most"] <= budget.get("max_bytes", said["bytes_before"] / budget.get("ratio", 1)) + 1
    assert said["seconds"] > 0 and said["peak_memory"] > 100 << 20 and said["next"]["recipe"]["steps"][0]["method"] == "quantize"


def test_a_size_is_nearly_filled(model):
    assert 0.97 * 300_000 <= asked(model, max_bytes=300_000)["bytes_after"] <= 300_000
    assert 0.97 * 4.5 <= 8 * (asked(model, avg_bits=4.5)["bytes_after"] - 2048) / WEIGHTS <= 4.55


@pytest.mark.parametrize("name, values", [("ratio", (12, 8, 5)), ("avg_bits", (2.5, 4, 6)), ("min_cosine", (0.9, 0.98, 0.998)), ("max_kl", (0.5, 0.1, 0.01)), ("max_relative_error", (0.4, 0.1, 0.02))])
def test_the_more_is_asked_for_the_more_it_takes(model, name, values):
    sizes = [asked(model, **{name: value})["bytes_after"] for value in values]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("name, value", [("max_bytes", 20_000), ("avg_bits", 1.5), ("ratio", 30)])
def test_what_no_choice_keeps_to_is_refused_with_the_nearest(model, name, value):
    with pytest.raises(BudgetNotMet) as refused:
        asked(model, "compressed-tensors", **{name: value})
    nearest = refused.value.extra["nearest"][name]
    assert nearest < value if name == "ratio" else nearest > value
    assert asked(model, "compressed-tensors", **{name: nearest * (0.999 if name == "ratio" else 1.001) if name != "max_bytes" else nearest})


def test_codes_go_below_two_bits_which_is_said(model):
    assert any("codebooks or pruning" in note for note in asked(model, avg_bits=1.5)["notes"])
    assert asked(model, avg_bits=1.5)["bytes_after"] <= 1.5 * WEIGHTS / 8 + 8192
