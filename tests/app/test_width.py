"""Narrower feed-forward layers as an estimate and a recipe know them: sizes that the work itself comes to, and refusals before any work."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import ConflictingSteps, InputRefused, InvalidJobSpec
from app.estimate import estimate
from app.feed_forward import find, kept
from app.job_spec import parse_job
from app.outline import Outline, TensorSpec
from app.recipe import parse_recipe
from app.width import narrowing, treated

WIDTH = {"method": "prune", "mask_structure": "ffn-width", "sparsity": 0.25}


def outline(shapes: dict[str, tuple[int, ...]], config: dict | None) -> Outline:
    specs, at = {}, {}
    for name, shape in shapes.items():
        count = 4
        for n in shape:
            count *= n
        specs[name], at[name] = TensorSpec(name, "F32", shape, count, "model.safetensors"), sum(s.nbytes for s in specs.values())
    files = {"config.json": 50, "model.safetensors": sum(s.nbytes for s in specs.values()) + 1000}
    return Outline(files, ("model.safetensors",), specs, at, config)


LAYER = {"h.0.intermediate.dense.weight": (20, 8), "h.0.intermediate.dense.bias": (20,), "h.0.output.dense.weight": (8, 20), "h.0.output.dense.bias": (8,)}
CONFIG = {"model_type": "bert", "intermediate_size": 20, "hidden_size": 8}


def test_what_shrinks():
    found = narrowing(outline(LAYER | {"x.weight": (20, 8)}, CONFIG), parse_recipe({"steps": [WIDTH]}))
    assert {n: c.shape for n, c in found.cuts.items()} == {
        "h.0.intermediate.dense.weight": (15, 8), "h.0.intermediate.dense.bias": (15,), "h.0.output.dense.weight": (8, 15),
    }  # fmt: skip
    assert found.config == CONFIG | {"intermediate_size": 15} and json.loads(found.text) == found.config


@given(st.integers(1, 5000), st.floats(0, 1, exclude_max=True))
def test_some_unit_stays(units, sparsity):
    assert 1 <= kept(units, sparsity) <= units


def test_an_estimate_is_exact_where_the_work_is():
    model = outline(LAYER, CONFIG)
    told = estimate(model, parse_job({"input": "0" * 8 + "-0000-0000-0000-" + "0" * 12, "recipe": {"steps": [WIDTH]}}), None)
    assert (told["output_format"], told["exact"]) == ("safetensors", True) and told["bytes_before"] == sum(model.files.values())
    rows = {r["name"]: r for r in told["tensors"]}
    assert rows["h.0.output.dense.weight"] == {"name": "h.0.output.dense.weight", "action": "pruned", "bytes_before": 640, "bytes_after": 480, "exact": True}
    assert any("20 -> 15" in note for note in told["notes"])


@pytest.mark.parametrize(
    "change",
    [
        {"scope": "global"}, {"scope": "tensor"}, {"schedule": {"kind": "cubic", "steps": 4}, "recover": {"steps": 9}},
    ],
)  # fmt: skip
def test_what_a_width_cannot_be_asked_for(change):
    with pytest.raises(InvalidJobSpec) as refused:
        parse_recipe({"steps": [WIDTH | change]})
    assert refused.value.pointer == f"/recipe/steps/0/{next(iter(change))}"


def test_width_goes_first_and_beside_other_pruning():
    recipe = parse_recipe({"steps": [WIDTH, {"method": "prune", "sparsity": 0.5}]})
    _, treatments, _ = treated(outline(LAYER, CONFIG), recipe, "packed")
    assert [s.mask_structure for s in treatments["h.0.output.dense.weight"].steps] == ["unstructured"]
    with pytest.raises(ConflictingSteps, match="first"):
        parse_recipe({"steps": [{"method": "prune", "sparsity": 0.5}, WIDTH]})


def test_shapes_that_do_not_fit_are_no_layer():
    for odd in ({"h.0.output.dense.weight": (8, 21)}, {"h.0.intermediate.dense.bias": (19,)}, {"h.0.output.dense.weight": (8, 20, 1)}):
        with pytest.raises(InputRefused, match="no feed-forward layer"):
            find(outline(LAYER | odd, CONFIG))


def test_tied_tensors_and_quantized_weights_are_refused():
    model = outline(LAYER, CONFIG)
    with pytest.raises(InputRefused, match="tied"):
        find(replace(model, aliases={"again": "h.0.output.dense.weight"}))
    with pytest.raises(InputRefused, match="quantized"):
        find(replace(model, config=CONFIG | {"quantization_config": {"bits": 4}}))
