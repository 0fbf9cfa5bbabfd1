"""Recipes: what is accepted, what it resolves to, and how each refusal names the field."""

from __future__ import annotations

import fnmatch
import json
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import ConflictingSteps, InvalidJobSpec, InvalidPattern, MalformedJson, ModelpressError
from app.job_spec import check_loss, parse_job
from app.presets import MODEL
from app.recipe import Prune, Quantize, check_matched, matcher, parse_recipe
from app.strict import parse_json, validate

ID = str(uuid.uuid4())
SPECS = Path(__file__).parents[3] / "shared" / "hostile" / "job_specs.json"
LATER = ("rank_", "energy_", "model_rejected", "model_incomplete", "webhook_redirect", "webhook_nip", "pattern_no_match")  # judged elsewhere


def steps(*steps, **rest):
    return parse_job({"input": ID, "recipe": {"steps": list(steps)}} | rest)


@pytest.mark.parametrize("name", MODEL)
def test_every_preset_is_a_valid_recipe(name):
    with_data = {"input": ID, "calibration": ID, "preset": name} if name == "deep-compression" else {"input": ID, "preset": name} | ({"budget": {"ratio": 4.0}} if name == "auto" else {})
    spec = parse_job(with_data)
    assert spec == parse_job(spec.model_dump(mode="json") | {"input": ID})


def test_a_preset_resolves_to_where_it_can_be_loaded():
    assert parse_job({"input": ID, "preset": "w4a16"}, has_config=True).output.format == "compressed-tensors"
    assert parse_job({"input": ID, "preset": "w4a16"}, has_config=False).output.format == "packed"
    assert parse_job({"input": ID, "preset": "lossless"}).sanitize == "report"
    assert parse_job({"input": ID, "preset": "int8"}).sanitize == "strip"


def test_group_size_implies_the_strategy_and_the_strategy_a_group_size():
    assert validate(Quantize, {"method": "quantize", "num_bits": 4, "group_size": 32}).strategy == "group"
    assert validate(Quantize, {"method": "quantize", "num_bits": 4, "strategy": "group"}).group_size == 128


def test_scales_of_few_bits_imply_groups_and_a_float_offset():
    step = validate(Quantize, {"method": "quantize", "num_bits": 4, "scale_bits": 6, "symmetric": False})
    assert (step.strategy, step.group_size, step.zero_point, step.plain_scales) == ("group", 32, "float", False)
    assert validate(Quantize, {"method": "quantize", "num_bits": 4, "scale_bits": 6, "group_size": 16}).group_size == 16
    assert validate(Quantize, {"method": "quantize", "num_bits": 4, "symmetric": False}).plain_scales
    assert validate(Quantize, {"method": "quantize", "num_bits": 4, "symmetric": False, "scale_search": "hqq"}).zero_point == "float"
    assert parse_job({"input": ID, "recipe": {"steps": [step.model_dump()]}}, has_config=True).output.format == "packed"


@pytest.mark.parametrize("text, kind, a, b", [("unstructured", "unstructured", 1, 1), ("2:4", "n:m", 2, 4), ("block:4x8", "block", 4, 8), ("channel", "channel", 1, 0)])
def test_mask_structures(text, kind, a, b):
    assert validate(Prune, {"method": "prune", "mask_structure": text}).structure == (kind, a, b)


@pytest.mark.parametrize(
    "step, pointer",
    [
        ({"method": "prune", "mask_structure": "4:2"}, "/recipe/steps/0/mask_structure"),
        ({"method": "prune", "mask_structure": "2:4", "schedule": {"kind": "cubic", "steps": 3}, "recover": {"steps": 9}}, "/recipe/steps/0/schedule"),
        ({"method": "prune", "recover": {"steps": 9, "penalty": "l1"}}, "/recipe/steps/0/recover/lambda"),
        ({"method": "prune", "recover": {"steps": 9, "lambda": 0.1}}, "/recipe/steps/0/recover/lambda"),
        ({"method": "prune", "recover": {"steps": 9, "bit_price": 1e-6}}, "/recipe/steps/0/recover/bit_price"),
        ({"method": "quantize", "mapping": "gradient", "avg_bits": 3, "recover": {"steps": 9}}, "/recipe/steps/0/recover"),
        ({"method": "quantize", "mapping": "gradient", "num_bits": 3, "recover": {"steps": 9, "penalty": "l2", "lambda": 1}}, "/recipe/steps/0/recover/penalty"),
        ({"method": "prune", "mask_structure": "2:4", "sparsity": 0.7}, "/recipe/steps/0/sparsity"),
        ({"method": "quantize", "num_bits": 4, "type": "float"}, "/recipe/steps/0/num_bits"),
        ({"method": "quantize", "num_bits": 8, "type": "float", "symmetric": False}, "/recipe/steps/0/symmetric"),
        ({"method": "quantize", "num_bits": 8, "strategy": "channel", "group_size": 64}, "/recipe/steps/0/group_size"),
        ({"method": "quantize", "num_bits": 4, "activations": "dynamic"}, "/recipe/steps/0/activations"),
        ({"method": "quantize"}, "/recipe/steps/0/num_bits"),
        ({"method": "quantize", "num_bits": 4, "type": "nf", "symmetric": False}, "/recipe/steps/0/symmetric"),
        ({"method": "quantize", "num_bits": 8, "type": "nf", "activations": "dynamic"}, "/recipe/steps/0/activations"),
        ({"method": "quantize", "num_bits": 4, "scale_search": "hqq"}, "/recipe/steps/0/scale_search"),
        ({"method": "quantize", "num_bits": 4, "scale_search": "hqq", "symmetric": False, "zero_point": "integer"}, "/recipe/steps/0/scale_search"),
        ({"method": "quantize", "num_bits": 4, "zero_point": "float"}, "/recipe/steps/0/zero_point"),
        ({"method": "quantize", "num_bits": 4, "scale_bits": 6, "zero_point": "integer", "symmetric": False}, "/recipe/steps/0/zero_point"),
        ({"method": "quantize", "num_bits": 4, "scale_bits": 9}, "/recipe/steps/0/scale_bits"),
        ({"method": "quantize", "num_bits": 4, "scale_bits": 6, "group_size": 48}, "/recipe/steps/0/scale_bits"),
        ({"method": "quantize", "num_bits": 4, "scale_bits": 6, "group_size": 256}, "/recipe/steps/0/scale_bits"),
        ({"method": "quantize", "num_bits": 4, "scale_bits": 6, "strategy": "channel", "group_size": None}, "/recipe/steps/0/strategy"),
        ({"method": "quantize", "num_bits": 4, "scale_bits": 6, "strategy": "channel"}, "/recipe/steps/0/strategy"),
        ({"method": "quantize", "num_bits": 8, "scale_bits": 6, "type": "float"}, "/recipe/steps/0/scale_bits"),
        ({"method": "quantize", "num_bits": 4, "mapping": "gradient", "scale_bits": 6}, "/recipe/steps/0/scale_bits"),
        ({"method": "quantize", "num_bits": 8, "activations": "dynamic", "scale_bits": 6}, "/recipe/steps/0/activations"),
        ({"method": "shrink"}, "/recipe/steps/0/method"),
        ({}, "/recipe/steps/0/method"),
        ({"method": "quantize", "num_bits": 8, "a/b~c": 1}, "/recipe/steps/0/a~1b~0c"),
    ],
)
def test_a_bad_step_is_named(step, pointer):
    with pytest.raises(InvalidJobSpec) as e:
        steps(step)
    assert e.value.pointer == pointer and e.value.status == 422 and e.value.extra["errors"]


def test_steps_that_contradict_each_other():
    quantize, prune = {"method": "quantize", "num_bits": 8}, {"method": "prune"}
    for bad in ([quantize, prune], [{"method": "lossless"}, quantize], [quantize, quantize], [prune, {"method": "restore"}]):
        with pytest.raises(ConflictingSteps):
            parse_recipe({"steps": bad})
    parse_recipe({"steps": [quantize | {"targets": ["a.*"]}, quantize | {"num_bits": 4, "targets": ["b.*"]}]})


@pytest.mark.parametrize("loss", ["labels", "both"])
def test_training_by_labels_needs_them_unless_text_is_its_own(loss):
    recipe = parse_recipe({"steps": [{"method": "prune", "recover": {"steps": 9, "loss": loss}}]})
    check_loss(recipe, False, "causal-lm")
    check_loss(recipe, True, "classifier")
    for task in ("classifier", "encoder", "program"):
        with pytest.raises(InvalidJobSpec) as e:
            check_loss(recipe, False, task)
        assert e.value.pointer == "/labels" and task in e.value.detail


@pytest.mark.parametrize(
    "recipe, output, has_config",
    [
        ([{"method": "lossless"}], "safetensors", True),
        ([{"method": "prune"}], "compressed-tensors", True),
        ([{"method": "quantize", "num_bits": 4}], "compressed-tensors", False),
        ([{"method": "quantize", "num_bits": 4}, {"method": "lossless"}], "compressed-tensors", True),
        ([{"method": "quantize", "num_bits": 4, "type": "nf"}], "compressed-tensors", True),
        ([{"method": "quantize", "num_bits": 4, "scale_bits": 6}], "compressed-tensors", True),
        ([{"method": "quantize", "num_bits": 4, "symmetric": False, "zero_point": "float"}], "compressed-tensors", True),
        ([{"method": "restore"}], "packed", True),
        ([{"method": "prune"}], "original", True),
    ],
)
def test_a_format_that_cannot_carry_the_result(recipe, output, has_config):
    with pytest.raises(InvalidJobSpec) as e:
        parse_job({"input": ID, "recipe": {"steps": recipe}, "output": {"format": output}}, has_config)
    assert e.value.pointer == "/output/format"


def test_a_program_becomes_a_program_again():
    def output(preset: str, **options) -> str:
        return parse_job({"input": ID, "preset": preset}, has_config=False, **options).output.format

    assert (output("prune-50", program=True), output("w8a16", program=True), output("lossless", program=True)) == ("pt2", "pt2", "packed")
    assert output("prune-50", program=False) == "packed"


@pytest.mark.parametrize(
    "recipe, program",
    [
        ([{"method": "prune"}], False),
        ([{"method": "prune"}, {"method": "lossless"}], True),
        ([{"method": "lossless"}], True),
        ([{"method": "prune", "mask_structure": "ffn-width"}], True),
        ([{"method": "restore"}], True),
    ],
)
def test_what_a_program_does_not_become(recipe, program):
    with pytest.raises(InvalidJobSpec) as e:
        parse_job({"input": ID, "recipe": {"steps": recipe}, "output": {"format": "pt2"}}, False, program=program)
    assert e.value.pointer == "/output/format"


@pytest.mark.parametrize("body", [b'{"a": NaN}', b'{"a": 1, "a": 2}', b"{}{}", b"\xff\xfe{\x00}\x00", b"", b"[" * 100_000])
def test_json_is_strict(body):
    with pytest.raises(MalformedJson):
        parse_json(body)


def test_patterns():
    names = ["h.0.attn.weight", "h.1.attn.weight", "lm_head.weight"]
    match = matcher(validate(Prune, {"method": "prune", "targets": ["h.*", r"re:lm_.*\.weight"], "ignore": ["h.1.*"]}))
    assert [n for n in names if match(n)] == [names[0], names[2]]
    for bad in ("re:(", "(a+)+$", "", "a" * 300, "re:(?=a)b"):
        with pytest.raises(InvalidPattern):
            parse_recipe({"steps": [{"method": "prune", "targets": [bad]}]})


@pytest.mark.skipif(not SPECS.exists(), reason="the hostile job specs are not beside this clone")
def test_hostile_specs():
    cases = [c for c in _cases(json.loads(SPECS.read_text())) if not c["name"].startswith(LATER)]
    assert len(cases) > 30
    for case in cases:
        text = (case.get("body_raw") or json.dumps(case["body"])).replace("$UPLOAD", ID).replace("$OTHER", ID)
        body = text.encode("utf-16" if "utf16" in case["name"] else "utf-8")
        if case["status"] == 202:
            parse_job(parse_json(body))
            continue
        with pytest.raises(ModelpressError) as e:
            parse_job(parse_json(body))
        assert (e.value.status, e.value.type) == (case["status"], case["type"]), case["name"]
        assert case["pointer"] in (None, e.value.pointer), case["name"]


def _cases(document):
    return document if isinstance(document, list) else next(v for v in document.values() if isinstance(v, list))


@given(st.text("ab.*?[]!-&~", min_size=1, max_size=12), st.text("ab.[]!-&~", max_size=12))
def test_globs_are_those_of_fnmatch(pattern, name):
    match = matcher(validate(Prune, {"method": "prune", "targets": ["other", pattern]}))
    assert match(name) == (fnmatch.fnmatchcase(name, pattern) or name == "other") and match("other")


def test_so_many_patterns_against_so_many_names_are_refused():
    names = [f"layers.{i}.weight" for i in range(10_000)]
    steps = [{"method": "prune", "targets": [*(f"*.{i}.*" for i in range(150)), *names[:700]], "ignore": [f"re:x{i}" for i in range(51)]}]
    with pytest.raises(InvalidJobSpec, match="201 patterns.* at most 200"):
        check_matched(parse_recipe({"steps": steps}), names)
    steps[0]["ignore"].pop()
    check_matched(parse_recipe({"steps": steps}), names)


SPARSEGPT, GPTQ = {"method": "prune", "saliency": "sparsegpt"}, {"method": "quantize", "algorithm": "gptq", "num_bits": 4}


@pytest.mark.parametrize(
    "recipe, pointer",
    [
        ([GPTQ | {"damping": 0.0}], "/recipe/steps/0/damping"),
        ([GPTQ | {"algorithm": "rtn", "sequential": True}], "/recipe/steps/0/sequential"),
        ([GPTQ | {"mapping": "gradient"}], "/recipe/steps/0/algorithm"),
        ([GPTQ | {"steps": 100}], "/recipe/steps/0/steps"),
        ([GPTQ | {"algorithm": "autoround", "steps": 0}], "/recipe/steps/0/steps"),
        ([GPTQ | {"algorithm": "autoround", "damping": 0.1}], "/recipe/steps/0/damping"),
        ([GPTQ | {"algorithm": "autoround", "activation_order": True}], "/recipe/steps/0/activation_order"),
        ([GPTQ | {"algorithm": "autoround", "type": "nf"}], "/recipe/steps/0/type"),
        ([GPTQ | {"algorithm": "awq", "type": "float", "num_bits": 8}], "/recipe/steps/0/type"),
        ([GPTQ | {"algorithm": "awq", "damping": 0.1}], "/recipe/steps/0/damping"),
        ([GPTQ | {"algorithm": "awq", "symmetric": False, "zero_point": "integer"}], "/recipe/steps/0/zero_point"),
        ([SPARSEGPT | {"norm": "l1"}], "/recipe/steps/0/norm"),
        ([SPARSEGPT | {"scope": "global"}], "/recipe/steps/0/scope"),
        ([SPARSEGPT | {"mask_structure": "block:4x4"}], "/recipe/steps/0/mask_structure"),
        ([SPARSEGPT | {"recover": {"steps": 5}}], "/recipe/steps/0/recover"),
        ([SPARSEGPT | {"saliency": "wanda", "damping": 0.1}], "/recipe/steps/0/damping"),
        ([SPARSEGPT | {"saliency": "fisher", "sequential": False}], "/recipe/steps/0/sequential"),
        ([SPARSEGPT | {"sequential": False}, GPTQ], "/recipe/steps/1/sequential"),
        ([SPARSEGPT, GPTQ | {"damping": 0.1}], "/recipe/steps/1/damping"),
        ([{"method": "prune", "recover": {"steps": 5}}, GPTQ], "/recipe/steps/1"),
    ],
)
def test_what_reconstruction_cannot_do_is_refused_where_it_is_said(recipe, pointer):
    with pytest.raises(InvalidJobSpec) as refused:
        steps(*recipe, calibration=ID)
    assert refused.value.pointer == pointer


def test_reconstruction_needs_data_and_has_its_defaults():
    with pytest.raises(InvalidJobSpec) as refused:
        steps(GPTQ)
    assert refused.value.pointer == "/calibration"
    prune, quantize = steps(SPARSEGPT, GPTQ, calibration=ID).recipe.steps
    assert (prune.damping, prune.sequential) == (quantize.damping, quantize.sequential) == (0.05, True) and quantize.activation_order is False
    learned = steps(GPTQ | {"algorithm": "autoround"}, calibration=ID).recipe.steps[0]
    assert (learned.steps, learned.sequential, learned.damping, learned.activation_order) == (200, True, None, None)
    assert parse_recipe({"steps": [{"method": "prune", "saliency": "wanda"}]}).steps[0].damping is None


@pytest.mark.parametrize(
    "step, pointer, known",
    [
        ({"method": "prune", "sparsity": 0.5, "groupsize": 1}, "/recipe/steps/0/groupsize", "mask_structure"),
        ({"method": "prune", "sparsity": 0.5, "recover": {"steps": 9, "lamda": 1}}, "/recipe/steps/0/recover/lamda", "lambda"),
        ({"method": "auto", "num_bits": 4}, "/recipe/steps/0/num_bits", "rounding"),
    ],
)
def test_of_an_unknown_field_the_known_ones_are_told(step, pointer, known):
    with pytest.raises(InvalidJobSpec, match=f"there is no field '{pointer.rsplit('/')[-1]}'; there are .*{known}") as e:
        parse_recipe({"steps": [step]})
    assert e.value.pointer == pointer
