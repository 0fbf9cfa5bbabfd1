"""Whole jobs that go by uploaded gradients, in one process: every saliency and mapping, read back and restored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.errors import InputRefused
from worker import pipeline

GRADIENT = {"method": "quantize", "mapping": "gradient"}
RECIPES = {
    "gradient": [{"method": "prune", "saliency": "gradient", "norm": "l1"}],
    "taylor": [{"method": "prune", "saliency": "taylor", "scope": "global", "sparsity": 0.7}],
    "fisher 2:4": [{"method": "prune", "saliency": "fisher", "mask_structure": "2:4"}],
    "rows": [GRADIENT | {"num_bits": 4}],
    "groups": [GRADIENT | {"num_bits": 3, "group_size": 25}],
    "allotted": [GRADIENT | {"avg_bits": 4.5}],
    "all": [{"method": "prune", "saliency": "fisher", "sparsity": 0.6}, GRADIENT | {"num_bits": 2, "strategy": "tensor"}, {"method": "lossless"}],
    "all allotted": [{"method": "prune", "saliency": "taylor", "norm": "l1"}, GRADIENT | {"avg_bits": 3}],
}


def run(source: Path, out: Path, steps: list, output: str, **rest) -> dict:
    spec = {"recipe": {"steps": steps}, "output": {"format": output}, "gates": {}, "sanitize": "report"} | rest
    pipeline.run(source, out, spec, lambda event: None)
    return json.loads((out / "report.json").read_text())


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> tuple[Path, Path]:
    """A model and its gradients."""
    g = torch.Generator().manual_seed(0)
    tensors = {"a.weight": torch.randn(64, 90, generator=g), "b.weight": torch.randn(70, 64, generator=g).bfloat16(), "c.weight": torch.randn(8, 4, 3, 3, generator=g)}
    folder = tmp_path_factory.mktemp("job")
    for name in ("model", "gradients"):
        (folder / name).mkdir()
    save_file(tensors | {"norm.weight": torch.ones(8)}, folder / "model" / "model.safetensors")
    save_file({n: torch.randn(t.shape, generator=g) for n, t in tensors.items()}, folder / "gradients" / "g.safetensors")
    return folder / "model", folder / "gradients"


@pytest.mark.parametrize("output", ["packed", pytest.param("safetensors", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", RECIPES)
def test_by_gradients(job, tmp_path, name, output):
    model, gradients = job
    report = run(model, tmp_path / "out", RECIPES[name], output, beside={"gradients": str(gradients)})
    changed = {r["name"]: r for r in report["tensors"] if r["action"] in ("pruned", "quantized")}
    assert set(changed) == {"a.weight", "b.weight", "c.weight"} and report["load_proof"]["tensors"] == 4
    if output == "packed":
        run(tmp_path / "out" / "files", tmp_path / "back", [{"method": "restore"}], "original")
    files = tmp_path / ("back" if output == "packed" else "out") / "files"
    result, original = load_file(files / "model.safetensors"), load_file(model / "model.safetensors")
    assert {n: (t.dtype, t.shape) for n, t in result.items()} == {n: (t.dtype, t.shape) for n, t in original.items()}
    for n, r in changed.items():
        error = (result[n].double() - original[n].double()).norm() / original[n].double().norm()
        assert 0 < error < 1 and abs(error - r["relative_error"]) < 1e-6


def test_notes_say_where_norms_coincide(job, tmp_path):
    model, gradients = job
    report = run(model, tmp_path / "out", RECIPES["taylor"], "packed", beside={"gradients": str(gradients)})
    assert any("taylor with l2 gives the mask of fisher with l1" in note for note in report["notes"]) and any("global" in note for note in report["notes"])


def test_gradients_of_another_model_are_refused(job, tmp_path):
    model, _ = job
    (tmp_path / "other").mkdir()
    save_file({"a.weight": torch.ones(2, 2)}, tmp_path / "other" / "g.safetensors")
    with pytest.raises(InputRefused):
        run(model, tmp_path / "out", RECIPES["rows"], "packed", beside={"gradients": str(tmp_path / "other")})
