"""The recover stage on whole models: what it writes and reports, and that a later child goes on where one was killed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch

from app.recipe import parse_recipe
from worker import child, recovering
from worker.output import reopen
from worker.zygote import Limits, serving

LIMITS = Limits(memory=4 << 30, file_bytes=1 << 30, threads=1)
TRAIN = {"steps": 12, "batch_size": 8}
GRADUAL = {"method": "prune", "saliency": "fisher", "scope": "global", "sparsity": 0.6, "schedule": {"kind": "cubic", "steps": 3}, "recover": TRAIN}
CODES = {"method": "quantize", "mapping": "gradient", "num_bits": 3, "strategy": "tensor", "recover": TRAIN | {"bit_price": 1e-6}}


@pytest.fixture
def zygote(zygotes):
    return serving(zygotes, "worker.recovering:child")


@pytest.fixture(scope="module")
def calibration(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("calibration")
    (folder / "text.txt").write_text("\n".join(tiny_models.texts(40)))
    return folder


def spec_of(steps: list[dict], beside: dict[str, Path], output: str = "packed") -> dict:
    recipe = parse_recipe({"steps": steps}).model_dump(mode="json")
    return {"recipe": recipe, "output": {"format": output}, "gates": {}, "sanitize": "strip", "seed": 0, "device": "cpu", "beside": {r: str(p) for r, p in beside.items()}}


def in_jail(zygote, model: Path, folder: Path, steps: list[dict], beside: dict[str, Path], output: str = "packed", stop=lambda out: False):
    """How it ended, what it told as progress, and its folder."""
    out, told = folder / "out", []
    out.mkdir(parents=True)
    spec = folder / "spec.json"
    spec.write_text(json.dumps(spec_of(steps, beside, output)))
    ended = child.run(zygote, model, out, spec, LIMITS, stop=lambda: stop(out), seconds=250, progress=told.append, read=beside.values())
    return ended, told, out


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
def test_a_folder_is_pruned_coded_and_trained(zygote, calibration, tmp_path, name):
    tiny_models.build(name, tmp_path / "m")
    ended, told, out = in_jail(zygote, tmp_path / "m", tmp_path, [GRADUAL, CODES, {"method": "lossless"}], {"calibration": calibration})
    assert ended.how == "done", ended
    assert {"recover", "compress", "verify"} <= {t["stage"] for t in told}
    report = json.loads((out / "report.json").read_text())
    assert [r["method"] for r in report["recovery"]] == ["prune", "quantize"]
    assert all(0 < r["steps_run"] <= 12 and r["held_out_loss"] is not None and r["stopped"] for r in report["recovery"])
    coded = [r for r in report["tensors"] if r["action"] == "quantized"]
    zeros = sum(r["sparsity"] * np.prod(r["shape"]) for r in coded) / sum(np.prod(r["shape"]) for r in coded)
    assert coded and zeros >= 0.6 - 1e-6 and all(r["num_bits"] == 3 for r in coded)
    with reopen("packed", out / "files") as result:
        for r in coded:
            assert len(torch.unique(result.read(r["name"]))) <= 8
    assert not (out / recovering.SNAPSHOT).exists()


def test_values_of_safetensors_hold_the_mask(zygote, calibration, tmp_path):
    tiny_models.build("bert", tmp_path / "m")
    step = {"method": "prune", "sparsity": 0.5, "recover": TRAIN}
    ended, _, out = in_jail(zygote, tmp_path / "m", tmp_path, [step], {"calibration": calibration}, "safetensors")
    assert ended.how == "done", ended
    rows = {r["name"]: r for r in json.loads((out / "report.json").read_text())["tensors"]}
    assert all(r["sparsity"] == 0.5 for r in rows.values() if r["action"] == "pruned")
    assert any(r["action"] == "copied" and "trained by recover" in r["reason"] for r in rows.values())


def test_a_killed_child_leaves_what_the_next_goes_on_from(zygote, calibration, tmp_path):
    tiny_models.build("bert", tmp_path / "m")
    steps = [GRADUAL | {"recover": TRAIN | {"steps": 4000}}]
    ended, told, out = in_jail(zygote, tmp_path / "m", tmp_path / "first", steps, {"calibration": calibration}, stop=lambda out: (out / recovering.SNAPSHOT).exists())
    assert ended.how == "stopped" and told[-1]["stage"] == "recover"
    left = out / recovering.SNAPSHOT
    again = in_jail(zygote, tmp_path / "m", tmp_path / "second", steps, {"calibration": calibration, "resume": left.parent}, stop=lambda out: (out / recovering.SNAPSHOT).exists())
    reached = [t["fraction"] for t in again[1] if t["stage"] == "recover"]
    assert reached[1] > 0.5 * told[-1]["fraction"] > 0


def test_samples_of_another_model_are_refused(zygote, tmp_path):
    tiny_models.build("bert", tmp_path / "m")
    (tmp_path / "c").mkdir()
    np.savez(tmp_path / "c" / "x.npz", pixels=np.zeros((20, 3), dtype="f4"))
    ended, _, _ = in_jail(zygote, tmp_path / "m", tmp_path, [GRADUAL], {"calibration": tmp_path / "c"})
    assert ended.how == "failed" and ended.problem["type"] == "calibration-mismatch"
