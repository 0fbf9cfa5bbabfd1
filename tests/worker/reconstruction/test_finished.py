from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from app.recipe import Prune, Quantize
from worker.checkpoint import TensorSpec
from worker.encoded import Codebook, Encoded
from worker.methods import METHODS
from worker.plan import TensorPlan
from worker.reconstruction import finished


def plan_of(name: str, dtype: str = "F32", transposed: bool = False) -> TensorPlan:
    return TensorPlan(TensorSpec(name, dtype, (6, 20), 480, "f"), [], None, transposed, True, ())


def made(plan: TensorPlan, *steps) -> Encoded:
    encoded = Encoded(plan.spec, "copied", torch.randn(6, 20, generator=torch.Generator().manual_seed(1)), notes=("a note",))
    for step in steps:
        encoded = METHODS[type(step)](plan, step, encoded)
    return encoded


def same(a: Encoded, b: Encoded) -> bool:
    for x, y in [(a.dense, b.dense), (a.mask, b.mask), *((getattr(a.quantized, p, None), getattr(b.quantized, p, None)) for p in ("codes", "scale", "zero_point", "levels"))]:
        if (x is None) != (y is None) or (x is not None and (x.dtype != y.dtype or not torch.equal(x, y))):
            return False
    told = lambda e: (e.spec, e.action, e.reason, e.notes, type(e.quantized), e.quantized and (e.quantized.params, e.quantized.group_size, e.quantized.transposed))  # noqa: E731
    return told(a) == told(b)


RECIPE = "{}"
PRUNE = Prune(method="prune", sparsity=0.5)
STEPS = {
    "pruned": (PRUNE,),
    "quantized": (Quantize(method="quantize", num_bits=4, group_size=8),),
    "asymmetric": (Quantize(method="quantize", num_bits=3, symmetric=False),),
    "both": (PRUNE, Quantize(method="quantize", num_bits=4)),
}


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_what_is_kept_comes_back(tmp_path, steps, transposed):
    plan = plan_of("a/b.weight", transposed=transposed)
    encoded = made(plan, *steps)
    finished.save(tmp_path / "00000.safetensors", {plan.spec.name: encoded}, RECIPE)
    assert same(finished.load(tmp_path / "00000.safetensors", {plan.spec.name: plan}, RECIPE)[plan.spec.name], encoded)
    assert same(finished.read(tmp_path / "00000.safetensors", plan), encoded)
    assert [p.name for p in tmp_path.iterdir()] == ["00000.safetensors"]


@pytest.mark.parametrize("allotted", [{}, {"avg_bits": 1.5}])
def test_codebooks_come_back(tmp_path, allotted):
    plan, step = plan_of("w", dtype="F16"), Quantize(method="quantize", mapping="gradient", num_bits=2).model_copy(update=allotted)
    book = Codebook(torch.randint(0, 4, (6, 20), dtype=torch.uint8), torch.randn(6, 4).sort(1).values.half(), 20, 2, step)
    encoded = Encoded(plan.spec, "quantized", book.dequantize().half(), quantized=book)
    finished.save(tmp_path / "x.safetensors", {"w": encoded}, RECIPE)
    assert same(finished.load(tmp_path / "x.safetensors", {"w": plan}, RECIPE)["w"], encoded)


def test_what_is_not_whole_or_of_other_tensors_is_nothing(tmp_path):
    path, plan = tmp_path / "x.safetensors", plan_of("w")
    assert finished.load(path, {"w": plan}, RECIPE) is None
    finished.save(path, {"w": made(plan, *STEPS["quantized"])}, RECIPE)
    assert finished.load(path, {"w": plan, "v": plan_of("v")}, RECIPE) is None and finished.load(path, {}, RECIPE) is None
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert finished.load(path, {"w": plan}, RECIPE) is None
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert finished.load(path, {"w": plan}, RECIPE) is None
    path.write_bytes(whole)
    with safe_open(path, "pt") as file:
        tensors, metadata = {k: file.get_tensor(k) for k in file.keys()}, file.metadata()
    told = json.loads(metadata["told"])
    told["w"]["notes"] = ["forged"]
    save_file(tensors, path, metadata | {"told": json.dumps(told)})
    assert finished.load(path, {"w": plan}, RECIPE) is None


def test_what_another_recipe_has_left_is_not_taken(tmp_path):
    plan = plan_of("w")
    finished.save(tmp_path / "x.safetensors", {"w": made(plan, *STEPS["quantized"])}, RECIPE)
    assert finished.load(tmp_path / "x.safetensors", {"w": plan}, '{"steps": []}') is None


@pytest.mark.parametrize("told", [
    [], {"w": []}, {"w": {}}, {"w": {"action": "quantized", "reason": None, "notes": 3, "quantized": None}},
    {"w": {"action": "quantized", "reason": None, "notes": [], "quantized": {"class": "Grid", "fields": {"other": 1}}}},
    {"w": {"action": "quantized", "reason": None, "notes": [], "quantized": {"class": "Grid", "fields": []}}},
])  # fmt: skip
def test_what_another_version_has_told_is_nothing(tmp_path, told):
    path, text, tensors = tmp_path / "x.safetensors", json.dumps(told), {"w/dense": torch.zeros(6, 20)}
    save_file(tensors, path, {"told": text, "recipe": RECIPE, "digest": finished._digest(text, tensors)})
    assert finished.load(path, {"w": plan_of("w")}, RECIPE) is None
