"""The stages of a job on a program that need data: gradients, and quality on the reloaded result."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from programs import exported

from app.errors import InputRefused
from app.job_spec import PRESETS
from worker import offline, samples
from worker.formats import open_checkpoint
from worker.runnable import open_runnable, replace
from worker.statistics import Statistics

FISHER = [{"method": "prune", "saliency": "fisher", "sparsity": 0.5}]


class Classifier(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(6, 12), torch.nn.Linear(12, 3)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


def saved(module: torch.nn.Module, batch: int | None) -> bytes:
    """For `batch` samples, or any number."""
    shapes = {"x": {0: torch.export.Dim("n", min=1, max=99)}} if batch is None else None
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(module.eval(), (torch.zeros(batch or 2, 6),), dynamic_shapes=shapes), buffer)
    return buffer.getvalue()


@pytest.fixture
def made(tmp_path):
    """Files of an input, of calibration data and of labels -> the folders, by role."""

    def making(program: bytes, arrays: dict[str, np.ndarray], labels: np.ndarray | None = None) -> dict[str, Path]:
        folders = {role: tmp_path / role for role in ("input", "calibration", "labels") if role != "labels" or labels is not None}
        for folder in folders.values():
            folder.mkdir(exist_ok=True)
        (folders["input"] / "net.pt2").write_bytes(program)
        np.savez(folders["calibration"] / "x.npz", **arrays)
        if labels is not None:
            np.save(folders["labels"] / "y.npy", labels)
        return folders

    return making


def opened(folders: dict[str, Path], scratch: Path):
    checkpoint = open_checkpoint(folders["input"], scratch)
    return checkpoint, open_runnable(folders["input"], checkpoint)


def run(folders: dict[str, Path], out: Path, steps: list, output: str = "pt2", **rest) -> dict:
    spec = {"recipe": {"steps": steps}, "output": {"format": output}, "gates": {}, "sanitize": "strip", "device": "cpu", "seed": 0}
    beside = {role: str(path) for role, path in folders.items() if role != "input"}
    offline.run(folders["input"], out, spec | {"beside": beside} | rest, lambda event: None)
    return json.loads((out / "report.json").read_text())


@pytest.mark.parametrize("batch", [None, 4])
def test_gradients_are_those_of_the_module_sample_by_sample(tmp_path, made, batch):
    torch.manual_seed(1)
    module, x = Classifier(), np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    y = np.arange(40) % 3
    (tmp_path / "out").mkdir()
    folders = made(saved(module, batch), {"x": x}, y)
    run(folders, tmp_path / "out", FISHER)
    found = Statistics.open(tmp_path / "out/calibrated/statistics.safetensors")
    expected = torch.zeros_like(module.a.weight)
    for i in samples.split(40, "fit"):
        loss = torch.nn.functional.cross_entropy(module(torch.from_numpy(x[i : i + 1])), torch.tensor([y[i]]))
        expected += torch.autograd.grad(loss, module.a.weight)[0].square()
    assert torch.allclose(found.square("a.weight"), expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("output", ["pt2", "packed", "safetensors"])
def test_quality_of_a_classifier(tmp_path, made, output):
    x = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    (tmp_path / "out").mkdir()
    report = run(made(saved(Classifier(), None), {"x": x}, np.arange(60) % 3), tmp_path / "out", FISHER, output, gates={"min_accuracy": 0.0, "min_cosine": 0.1})
    quality = report["quality"]
    assert quality["measured"] and quality["task"] == "classifier" and 0 < quality["relative_output_error"] < 1 and quality["accuracy"] is not None
    assert report["gates"]["min_accuracy"]["passed"]


def test_quality_of_a_program_of_tokens(tmp_path, made):
    """Without labels it is a regressor: cosine and relative error of its outputs, none of classes."""
    (tmp_path / "out").mkdir()
    report = run(made(exported("tokens"), {"ids": np.random.default_rng(0).integers(0, 11, (30, 7))}), tmp_path / "out", [{"method": "quantize", "num_bits": 8}])
    assert report["quality"]["task"] == "regressor" and report["quality"]["cosine"] > 0.9 and "kl" not in report["quality"]


def test_new_values_in_place(tmp_path, made):
    checkpoint, runnable = opened(made(exported("convolution"), {"x": np.zeros((8, 1, 8, 8), np.float32)}), tmp_path)
    replace(runnable, {"l.weight": torch.full((10, 36), 0.5), "elsewhere": torch.zeros(1)})
    assert float(runnable.parameters["tied.weight"].mean()) == 0.5
    assert not bool((checkpoint.read("l.weight") == 0.5).any())


@pytest.mark.parametrize(
    "arrays, reason, told",
    [
        ({"y": np.zeros((9, 6), np.float32)}, "calibration-mismatch", "it takes x"),
        ({"x": np.zeros((9, 5), np.float32)}, "calibration-mismatch", r"\[6\]"),
        ({"x": np.zeros((9, 6), np.int64)}, "calibration-mismatch", "floats"),
    ],
)
def test_data_that_do_not_fit(tmp_path, made, arrays, reason, told):
    folders = made(exported("mlp"), arrays)
    _, runnable = opened(folders, tmp_path)
    with pytest.raises(InputRefused, match=told) as refusal:
        samples.fit(samples.read(folders["calibration"]), runnable)
    assert refusal.value.type == reason


def test_tokens_outside_the_table(tmp_path, made):
    folders = made(exported("tokens"), {"ids": np.full((9, 7), 11)})
    _, runnable = opened(folders, tmp_path)
    with pytest.raises(InputRefused, match="0 to 10"):
        samples.fit(samples.read(folders["calibration"]), runnable)


def test_text_is_nothing_for_a_program(tmp_path, made):
    folders = made(exported("mlp"), {"x": np.zeros((9, 6), np.float32)})
    (folders["calibration"] / "x.npz").unlink()
    (folders["calibration"] / "x.txt").write_text("a line\n" * 20)
    _, runnable = opened(folders, tmp_path)
    with pytest.raises(InputRefused, match="takes no text"):
        samples.fit(samples.read(folders["calibration"]), runnable)


def test_labels_make_a_classifier_where_they_are_classes(tmp_path, made):
    x = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    for labels, task in ((np.arange(20) % 3, "classifier"), (np.zeros((20, 3), np.float32), "regressor"), (None, "regressor")):
        folders = made(exported("mlp"), {"x": x}, labels)
        _, runnable = opened(folders, tmp_path)
        samples.fit(samples.read(folders["calibration"], folders.get("labels") if labels is not None else None), runnable)
        assert runnable.task == task


@pytest.mark.slow
def test_convolutions_are_pruned_coded_and_trained_on_images_that_are_moved(tmp_path, made):
    rng = np.random.default_rng(3)
    images = torch.nn.functional.avg_pool2d(torch.from_numpy(rng.normal(size=(60, 1, 12, 12))).float(), 5, 1).numpy()
    folders = made(exported("convolution"), {"x": images}, rng.integers(0, 10, 60))
    prune, quantize, lossless = PRESETS["deep-compression"]["steps"]
    few = {"steps": 4, "batch_size": 12}
    steps = [prune | {"sparsity": 0.5, "schedule": {"kind": "cubic", "steps": 2}, "recover": few}, quantize | {"recover": few}, lossless]
    report = run(folders, tmp_path / "out", steps, "packed")
    assert [told["perturbed"] for told in report["recovery"]] == ["every other sample is moved: x holds images of 8 x 8"] * 2
    assert report["recovery"][0]["loss"] == ["distill", "labels"]
    coded = {t["name"]: t["sparsity"] for t in report["tensors"] if t["action"] == "quantized"}
    assert coded.keys() == {"c.weight", "l.weight"} and sum(coded.values()) > 0.4
