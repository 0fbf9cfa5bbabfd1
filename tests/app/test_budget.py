"""Budgets: what is refused where, what a command line may say, and whether a result keeps to one."""

from __future__ import annotations

import uuid

import pytest

from app import budget
from app.cache import cache_key
from app.errors import BudgetNotMet, InvalidJobSpec
from app.forecast import stages
from app.job_spec import PRESETS, parse_job
from app.recipe import MAX_STEPS, Quantize, parse_recipe

ID = str(uuid.uuid4())
AUTO = {"input": ID, "preset": "auto"}


@pytest.mark.parametrize(
    "body, pointer",
    [
        (AUTO, "/budget"),
        (AUTO | {"budget": {}}, "/budget"),
        (AUTO | {"budget": None}, "/budget"),
        (AUTO | {"budget": {"ratio": 1}}, "/budget/ratio"),
        (AUTO | {"budget": {"ratio": "4"}}, "/budget/ratio"),
        (AUTO | {"budget": {"max_bytes": 0}}, "/budget/max_bytes"),
        (AUTO | {"budget": {"avg_bits": 17.0}}, "/budget/avg_bits"),
        (AUTO | {"budget": {"min_cosine": 1.0}, "calibration": ID}, "/budget/min_cosine"),
        (AUTO | {"budget": {"max_kl": 0.0}, "calibration": ID}, "/budget/max_kl"),
        (AUTO | {"budget": {"bits": 4}}, "/budget/bits"),
        (AUTO | {"budget": {"min_cosine": 0.9}}, "/calibration"),
        (AUTO | {"budget": {"max_kl": 0.1}}, "/calibration"),
        (AUTO | {"budget": {"ratio": 4.0}, "output": {"format": "safetensors"}}, "/output/format"),
        ({"input": ID, "preset": "w4a16", "budget": {"ratio": 4.0}}, "/budget"),
        ({"input": ID, "recipe": {"steps": [{"method": "auto"}, {"method": "lossless"}]}, "budget": {"ratio": 4.0}}, "/recipe/steps/0"),
    ],
)
def test_what_is_refused(body, pointer):
    with pytest.raises(InvalidJobSpec) as e:
        parse_job(body)
    assert e.value.pointer == pointer


def test_compressed_tensors_needs_a_config():
    body = AUTO | {"budget": {"ratio": 4.0}, "output": {"format": "compressed-tensors"}}
    assert parse_job(body).recipe.searches
    with pytest.raises(InvalidJobSpec, match="config.json"):
        parse_job(body, has_config=False)


def test_it_is_asked_for_and_kept_as_asked():
    spec = parse_job(AUTO | {"budget": {"ratio": 4.0, "min_cosine": 0.9}, "calibration": ID})
    assert spec.output.format == "packed" and spec.sanitize == "strip" and spec.recipe.kind == "lossy"
    kept = spec.model_dump(mode="json")
    assert kept["recipe"]["steps"] == [{"method": "auto", "targets": ["*"], "ignore": [], "rounding": "autoround"}] and budget.bounds(kept["budget"]) == {"ratio": 4.0, "min_cosine": 0.9}
    assert stages(kept)[:4] == ["fetch", "calibrate", "search", "compress"] and "measure" in stages(kept)
    own = parse_job({"input": ID, "recipe": {"steps": [{"method": "auto", "ignore": ["*pooler*"]}]}, "budget": {"avg_bits": 3.0}})
    assert own.recipe.searches and "calibrate" not in stages(own.model_dump(mode="json"))


def test_another_budget_is_another_result():
    keys = [cache_key("o", "d", parse_job(AUTO | {"budget": {"ratio": r}}).model_dump(mode="json"), "cpu") for r in (4.0, 4.0, 5.0)]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize("texts, found", [(["ratio=4"], {"ratio": 4}), (["ratio=4", "min_cosine=.9e0"], None), (['{"ratio": 4.5, "max_kl": 1}'], {"ratio": 4.5, "max_kl": 1}), ([], {})])
def test_on_a_command_line(texts, found):
    if found is None:
        with pytest.raises(InvalidJobSpec):
            budget.given(texts)
    else:
        assert budget.given(texts) == found


@pytest.mark.parametrize("text", ["4", "ratio", "ratio=four", "[4]", "{", '{"ratio": NaN}'])
def test_what_a_command_line_may_not_say(text):
    with pytest.raises(InvalidJobSpec) as e:
        parse_job(AUTO | {"budget": budget.given([text])})
    assert e.value.pointer.startswith("/budget")


ROWS = [
    {"name": "a", "action": "quantized", "shape": [10, 10], "bytes_after": 50, "relative_error": 0.2},
    {"name": "b", "action": "copied", "shape": [10], "bytes_after": 40, "relative_error": 0.0},
]


def test_a_result_is_held_against_it():
    held = budget.held(
        {"max_bytes": 100, "ratio": 5.0, "avg_bits": 4.0, "max_relative_error": 0.1, "min_cosine": 0.9}, ROWS, {"bytes_before": 440, "bytes_after": 100}, {"cosine": 0.95}
    )
    assert {name: (j["value"], j["passed"]) for name, j in held.items()} == {
        "max_bytes": (100, True), "ratio": (4.4, False), "avg_bits": (4.0, True), "max_relative_error": (0.2, False), "min_cosine": (0.95, True),
    }  # fmt: skip
    with pytest.raises(BudgetNotMet, match="ratio is 4.4") as e:
        budget.enforce(held)
    assert e.value.extra["nearest"] == {"ratio": 4.4} and e.value.status == 422
    assert "max_kl" not in budget.held({"max_kl": 1.0}, ROWS, {"bytes_before": 440, "bytes_after": 100}, {})


def test_a_recipe_may_have_a_step_for_every_choice():
    steps = [{"method": "quantize", "num_bits": 2 + i % 7, "targets": [f"layer.{i}.weight"]} for i in range(MAX_STEPS)]
    assert len(parse_recipe({"steps": steps}).steps) == MAX_STEPS
    with pytest.raises(InvalidJobSpec):
        parse_recipe({"steps": [*steps, steps[0] | {"targets": ["one.more"]}]})
    with pytest.raises(InvalidJobSpec, match="same targets"):
        parse_recipe({"steps": [steps[0], steps[1] | {"targets": ["x", "layer.0.weight"]}]})


def test_what_a_search_will_find_is_taken_for_codebooks_of_the_same_tensors():
    (step,) = parse_recipe({"steps": [{"method": "auto", "targets": ["a.*"], "ignore": ["a.b"]}]}).stand_in.steps
    assert isinstance(step, Quantize) and (step.targets, step.ignore) == (["a.*"], ["a.b"])


def test_the_preset_is_the_step_alone():
    assert PRESETS["auto"] == {"steps": [{"method": "auto"}]}
