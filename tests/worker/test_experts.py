"""Models whose experts are in tensors of rank 3: what becomes of them, and that transformers opens the result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_models
import torch

from app.recipe import parse_recipe
from worker import pipeline
from worker.reloaded import reloaded

TURNED = {"gpt-oss": True, "llama4": True, "qwen3-vl-moe": False, "granitemoe": False}


def compressed(model: Path, out: Path, steps: list[dict]) -> dict:
    out.mkdir()
    recipe = parse_recipe({"steps": steps}).model_dump(mode="json")
    pipeline.run(model, out, {"recipe": recipe, "output": {"format": "packed"}, "gates": {}, "sanitize": "strip", "seed": 0, "device": "cpu"}, lambda event: None)
    return json.loads((out / "report.json").read_text())


@pytest.mark.parametrize("name", [n if n in ("gpt-oss", "qwen3-vl-moe") else pytest.param(n, marks=pytest.mark.slow) for n in TURNED])
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
