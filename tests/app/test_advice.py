"""The next recipe worth trying is one that this service takes, goes the right way, and comes to an end."""

from __future__ import annotations

import uuid

import pytest

from app import advice
from app.errors import InvalidJobSpec
from app.job_spec import check_output, parse_job
from app.presets import MODEL
from app.recipe import parse_recipe

ID = str(uuid.uuid4())
W4 = {"steps": [{"method": "quantize", "num_bits": 4}]}


def missed(**gates) -> dict:
    return {name: {"limit": limit, "value": 0.5, "passed": False} for name, limit in gates.items()}


def follow(recipe: dict, output: str, data: bool, **gates) -> list[dict]:
    """The recipes that are advised one after another."""
    out = []
    while (told := advice.after(missed(**gates), parse_recipe(recipe), output, data)) and told["recipe"]:
        recipe = told["recipe"]
        out.append(recipe)
        assert len(out) < 40, "it never ends"
    return out


@pytest.mark.parametrize("name", [n for n in MODEL if n not in ("auto", "lossless")])
@pytest.mark.parametrize("gates", [{"min_cosine": 0.99}, {"max_bytes": 1000}])
@pytest.mark.parametrize("data", [False, True])
def test_what_is_advised_can_be_sent(name, gates, data):
    recipe = MODEL[name]
    for output in ("packed", "compressed-tensors"):
        try:
            check_output(parse_recipe(recipe), output, True)
        except InvalidJobSpec:
            continue
        for told in follow(recipe, output, data, **gates)[:6]:
            check_output(parse_recipe(told), output, True)


def test_after_a_missed_quality_what_costs_no_bytes_comes_first():
    told = follow(W4, "packed", True, min_cosine=0.99)
    assert told[0]["steps"] == [{"method": "quantize", "num_bits": 4, "scale_search": "mse"}]
    widths = [t["steps"][0]["num_bits"] for t in told]
    assert widths == sorted(widths) and widths[-1] == 8


def test_after_too_many_bytes_coding_comes_first():
    told = follow(W4, "packed", False, max_bytes=9)
    assert told[0]["steps"] == [W4["steps"][0], {"method": "lossless"}]
    assert [t["steps"][0]["num_bits"] for t in told[1:]] == [3, 2]


def test_data_know_better_than_the_size_of_weights():
    told = advice.after(missed(max_kl=0.1), parse_recipe({"steps": [{"method": "prune", "sparsity": 0.6}]}), "packed", True)
    assert told["recipe"]["steps"][0]["saliency"] == "fisher" and "max_kl missed" in told["why"]
    told = advice.after(missed(max_kl=0.1), parse_recipe({"steps": [{"method": "prune", "sparsity": 0.6}, {"method": "lossless"}]}), "packed", False)
    assert told["recipe"]["steps"][0]["sparsity"] == pytest.approx(0.4)


@pytest.mark.parametrize("gate, data, budget", [("min_cosine", True, {"min_cosine": 7}), ("min_cosine", False, None), ("max_bytes", False, {"max_bytes": 7})])
def test_the_search_that_is_advised_is_one(gate, data, budget):
    told = advice.after(missed(**{gate: 7}), parse_recipe(W4), "packed", data)
    assert (told["auto"] and told["auto"]["budget"]) == budget
    if budget and gate == "max_bytes":
        assert parse_job({"input": ID} | told["auto"]).recipe.searches


def test_there_is_no_advice_where_nothing_is_missed():
    assert advice.after({"max_bytes": {"limit": 9, "value": 5, "passed": True}}, parse_recipe(W4), "packed", True) is None
    assert advice.after({}, parse_recipe(W4), "packed", True) is None
    assert advice.after({"max_kl": {"limit": 9, "value": None, "passed": False}}, parse_recipe(W4), "packed", True) is None
    assert advice.after(missed(max_bytes=9), parse_recipe({"steps": [{"method": "restore"}]}), "original", True) is None


def test_beside_an_estimate():
    recipe = parse_recipe(W4)
    assert advice.beside(recipe, "packed", False, 100, 50)["auto"] == {"preset": "auto", "budget": {"max_bytes": 50}}
    assert advice.beside(recipe, "packed", False, 100, 200)["recipe"]["steps"][0]["scale_search"] == "mse"
    good = parse_recipe({"steps": [{"method": "quantize", "num_bits": 4, "scale_search": "mse"}, {"method": "lossless"}]})
    assert advice.beside(good, "packed", True, 100, None) is None
