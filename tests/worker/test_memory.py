"""What real runs take stays below what was said of them, and not far below."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from app.job_spec import parse_job
from app.memory import peak_memory, run_bytes, unknown_peak
from app.outline import TensorSpec
from app.recipe import parse_recipe
from app.targets import treat
from benchmarks.child_memory import measure
from worker.__main__ import ANY_ID
from worker.formats import open_checkpoint

STEPS = {
    "lossless": ("packed", {"method": "lossless"}),
    "quantize": ("compressed-tensors", {"method": "quantize", "num_bits": 8}),
    "prune": ("packed", {"method": "prune", "scope": "tensor"}),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """100 MB, in three tensors."""
    folder = tmp_path_factory.mktemp("model")
    g = torch.Generator().manual_seed(0)
    save_file({f"layers.{i}.weight": (torch.randn(4096, 4096, generator=g) * 0.02).bfloat16() for i in range(3)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("name", [n if n == "lossless" else pytest.param(n, marks=pytest.mark.slow) for n in STEPS])
def test_the_peak_stays_below_the_estimate(model, tmp_path, name):
    output, step = STEPS[name]
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"steps": [step]}))
    checkpoint = open_checkpoint(model, tmp_path)
    expected = peak_memory(treat(checkpoint.tensors, checkpoint.config, parse_recipe({"steps": [step]}), output).values(), proof=False)
    _, peak = measure([sys.executable, "-m", "worker", str(model), str(tmp_path / "out"), "--recipe", str(recipe), "--format", output])
    assert expected / 3 < peak < expected, (peak, expected)


def test_a_larger_tensor_takes_more_and_more_tensors_hardly_do():
    def peak(shapes: list[tuple[int, ...]], **step) -> int:
        specs = {f"{i}.weight": _spec(f"{i}.weight", shape) for i, shape in enumerate(shapes)}
        return peak_memory(treat(specs, None, parse_recipe({"steps": [{"method": "quantize", "num_bits": 8} | step]}), "packed").values(), proof=False)

    one = peak([(1024, 1024)])
    assert peak([(1024, 1024)] * 100) < 1.01 * one < peak([(8192, 8192)])
    assert peak([(8192, 8192)], strategy="tensor", scale_search="mse") > peak([(8192, 8192)])
    assert unknown_peak(1 << 30) > unknown_peak(1 << 20) >= one / 2


def _spec(name: str, shape: tuple[int, ...]) -> TensorSpec:
    return TensorSpec(name, "BF16", shape, 2 * shape[0] * shape[1], "model.safetensors")


def test_a_model_that_is_run_takes_all_its_weights_in_float32():
    specs = {"a.weight": _spec("a.weight", (4096, 65536))}
    elements = 4096 * 65536

    def peak(step: dict, *given: str) -> int:
        spec = parse_job({"input": ANY_ID, "recipe": {"steps": [step]}, "output": {"format": "packed"}} | dict.fromkeys(given, ANY_ID), True)
        return peak_memory(treat(specs, None, spec.recipe, "packed").values(), proof=False, runs=run_bytes(spec))

    fisher = {"method": "prune", "saliency": "fisher"}
    unrun, measured, felt = peak(fisher, "gradients"), peak(fisher, "gradients", "calibration"), peak(fisher, "calibration")
    trained = peak(fisher | {"recover": {"steps": 10}}, "calibration")
    learned, rounded = (peak({"method": "quantize", "num_bits": 4, "algorithm": a}, "calibration") for a in ("autoround", "gptq"))
    assert rounded < learned and learned > 20 * elements
    assert unrun <= measured < trained and measured <= felt < trained and felt > 12 * elements and trained > 24 * elements
