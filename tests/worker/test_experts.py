"""Models whose experts are in tensors of rank 3: what becomes of them, and that transformers opens the result."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import tiny_models
import torch

from app.recipe import parse_recipe
from worker import pipeline, reconstructing
from worker.output import reopen
from worker.reloaded import reloaded

TURNED = {"gpt-oss": True, "llama4": True, "qwen3-vl-moe": False, "granitemoe": False}
SOME = [n if n in ("gpt-oss", "qwen3-vl-moe") else pytest.param(n, marks=pytest.mark.slow) for n in TURNED]


def compressed(model: Path, out: Path, steps: list[dict], **beside: Path) -> dict:
    out.mkdir()
    recipe = parse_recipe({"steps": steps})
    spec = {"recipe": recipe.model_dump(mode="json"), "output": {"format": "packed"}, "gates": {}, "sanitize": "strip", "seed": 0, "device": "cpu"}
    spec |= {"beside": {role: str(path) for role, path in beside.items()}}
    (reconstructing if recipe.reconstructs else pipeline).run(model, out, spec, lambda event: None)
    return json.loads((out / "report.json").read_text())


@pytest.mark.parametrize("name", SOME)
def test_every_expert_is_worked_on_and_transformers_loads_what_is_restored(tmp_path, name):
    model = tiny_models.build(name, tmp_path / "m", tokenizer=False)
    report = compressed(tmp_path / "m", tmp_path / "a", [{"method": "prune", "mask_structure": "2:4"}, {"method": "quantize", "num_bits": 4, "strategy": "tensor"}])
    experts = {r["name"]: r for r in report["tensors"] if len(r["shape"]) == 3}
    assert len(experts) == 4 and all(r["action"] == "quantized" and r["experts"]["count"] == 4 for r in experts.values())
    assert all("4 experts, each pruned and quantized for itself" in r["notes"] and len(r["notes"]) == 1 for r in experts.values())
    assert all(r["action"] == "copied" for r in report["tensors"] if "router" in r["name"] or r["name"].endswith(("bias", ".gate.weight")))
    (tmp_path / "scratch").mkdir()
    with reloaded("packed", tmp_path / "a" / "files", tmp_path / "scratch", lambda n: None) as (folder, checkpoint):
        for n, r in experts.items():
            w = checkpoint.read(n)
            inputs = w.transpose(1, 2) if TURNED[name] else w
            assert tuple(w.shape) == tuple(r["shape"]) and bool(((inputs.unflatten(2, (-1, 4)) == 0).sum(-1) >= 2).all())
            assert all(len(one.unique()) <= 16 for one in w) and len(w.unique()) > 16
        loaded = type(model).from_pretrained(folder, dtype=torch.float32)
        own = [p for p in loaded.parameters() if p.ndim == 3]
        assert len(own) == 4 and all(any(p.shape == (w := checkpoint.read(n)).shape and torch.equal(p, w) for n in experts) for p in own)


GPTQ = {"method": "quantize", "algorithm": "gptq", "num_bits": 3, "group_size": 8}


@pytest.fixture(scope="module")
def calibration(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("calibration")
    (folder / "text.txt").write_text("\n".join(tiny_models.texts(60)))
    return folder


def test_experts_in_one_tensor_become_what_they_would_one_by_one(calibration, tmp_path):
    from safetensors.torch import load_file, save_file

    model = tiny_models.build("qwen3-moe", tmp_path / "one-by-one")
    shutil.copytree(tmp_path / "one-by-one", tmp_path / "m")
    tensors = {n: t for n, t in load_file(tmp_path / "m" / "model.safetensors").items() if ".experts." not in n}
    tensors |= {n: p.detach().clone() for n, p in model.named_parameters() if ".experts." in n}
    save_file(tensors, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    for out, source in (("a", "m"), ("b", "one-by-one")):
        compressed(tmp_path / source, tmp_path / out, [GPTQ], calibration=calibration)
    with reopen("packed", tmp_path / "a" / "files") as a, reopen("packed", tmp_path / "b" / "files") as b:
        for layer in range(2):
            name = f"model.layers.{layer}.mlp.experts"
            one = [[b.read(f"{name}.{e}.{part}_proj.weight") for part in ("gate", "up", "down")] for e in range(4)]
            assert (a.read(f"{name}.gate_up_proj") == torch.stack([torch.cat(w[:2]) for w in one])).float().mean() > 0.98  # sums in another order may round otherwise
            assert (a.read(f"{name}.down_proj") == torch.stack([w[2] for w in one])).float().mean() > 0.98


@pytest.mark.parametrize("name", [n if n == "gpt-oss" else pytest.param(n, marks=pytest.mark.slow) for n in TURNED])
def test_experts_that_few_tokens_reach_go_by_their_weights_and_say_so(calibration, tmp_path, name):
    tiny_models.build(name, tmp_path / "m", **{"num_experts" if name == "qwen3-vl-moe" else "num_local_experts": 8}, num_experts_per_tok=1)
    report = compressed(tmp_path / "m", tmp_path / "a", [{"method": "prune", "saliency": "sparsegpt"}, GPTQ | {"strategy": "tensor", "group_size": None}], calibration=calibration)
    rows = [r for r in report["tensors"] if len(r["shape"]) == 3]
    notes = [" ".join(r["notes"]) for r in rows]
    assert len(rows) == 4 and report["reconstruction"]["stages"] == 2 and all(r["experts"]["count"] == 8 and r["sparsity"] >= 0.45 for r in rows)
    assert all("in the mean over experts" in note for note in notes)
    assert any("fewer than 16 tokens of the calibration data reach" in note and "of 8 experts" in note and "pruned by magnitude and rounded to the nearest" in note for note in notes)


def test_a_layer_that_is_finished_is_not_worked_on_again(calibration, tmp_path):
    tiny_models.build("qwen3-vl-moe", tmp_path / "m")
    step = GPTQ | {"symmetric": False, "zero_point": "float"}
    compressed(tmp_path / "m", tmp_path / "a", [step], calibration=calibration)
    (tmp_path / "a" / "resume" / "00001.safetensors").unlink()
    compressed(tmp_path / "m", tmp_path / "b", [step], calibration=calibration, resume=tmp_path / "a" / "resume")
    a, b = ((tmp_path / out / "files").rglob("*.safetensors") for out in "ab")
    assert [p.read_bytes() for p in a] == [p.read_bytes() for p in b]


def test_the_rounding_of_every_expert_that_tokens_reach_is_learned(calibration, tmp_path):
    tiny_models.build("qwen3-vl-moe", tmp_path / "m")
    step = {k: v for k, v in GPTQ.items()} | {"algorithm": "autoround", "steps": 12, "num_bits": 2}
    report = compressed(tmp_path / "m", tmp_path / "a", [step], calibration=calibration)
    notes = [" ".join(r["notes"]) for r in report["tensors"] if "experts" in r["name"] and r["action"] == "quantized"]
    assert len(notes) == 4 and all("in the mean over experts" in note for note in notes)
    told = [re.search(r"output error of its block ([\d.]+) before, ([\d.]+) after 12 steps", note) for note in notes]
    assert all(float(m[2]) < float(m[1]) for m in told)
