"""The calibrate stage in its jail, and what compression makes of its file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_models
from safetensors.torch import load_file

from worker import child, pipeline
from worker.calibrating import NAME
from worker.formats import open_checkpoint
from worker.statistics import Statistics, check
from worker.zygote import Limits, serving

LIMITS = Limits(memory=4 << 30, file_bytes=1 << 30, threads=1)


@pytest.fixture
def zygote(zygotes):
    return serving(zygotes, "worker.calibrating:child")


def calibrated(zygote, tmp_path, model: Path, lines: list[str], labels: list[int] | None = None, limits: Limits = LIMITS):
    """The stage on a model folder: how it ended, what it told as progress, and its folder."""
    beside = {"calibration": tmp_path / "calibration"} | ({"labels": tmp_path / "labels"} if labels else {})
    for folder in (*beside.values(), tmp_path / "out"):
        folder.mkdir()
    (beside["calibration"] / "text.txt").write_text("\n".join(lines))
    if labels:
        (beside["labels"] / "labels.txt").write_text("\n".join(map(str, labels)))
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps({"seed": 1, "device": "cpu", "beside": {role: str(path) for role, path in beside.items()}}))
    told = []
    ended = child.run(zygote, model, tmp_path / "out", spec, limits, stop=lambda: False, seconds=250, progress=told.append, read=beside.values())
    return ended, told, tmp_path / "out"


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
def test_every_matrix_has_its_statistics(zygote, tmp_path, name):
    tiny_models.build(name, tmp_path / "m")
    ended, told, out = calibrated(zygote, tmp_path, tmp_path / "m", tiny_models.texts(40))
    assert ended.how == "done", ended
    assert told[0]["stage"] == "calibrate" and [t["fraction"] for t in told] == sorted(t["fraction"] for t in told)
    tensors, statistics = load_file(tmp_path / "m" / "model.safetensors"), Statistics.open(out / NAME)
    matrices = {n for n, t in tensors.items() if t.ndim >= 2}
    assert statistics.names == matrices and not statistics.uploaded
    silent = check(statistics, open_checkpoint(tmp_path / "m", tmp_path), matrices)
    assert silent == ({"pooler.dense.weight"} if name == "bert" else set())
    for n in matrices:
        absolute, square = statistics.absolute(n), statistics.square(n)
        assert absolute.shape == square.shape == tensors[n].shape and bool((absolute.square() >= square * 0.999).all())
    linear = next(n for n in sorted(matrices) if n.endswith(("query.weight", "c_attn.weight", "q_proj.weight")))
    assert statistics.inputs(linear).shape == (16,) and bool((statistics.inputs(linear) > 0).all())
    assert {p.name for p in out.iterdir()} <= {NAME, "scratch"}


def test_labels_are_taken(zygote, tmp_path):
    tiny_models.build("classifier", tmp_path / "m")
    ended, _, out = calibrated(zygote, tmp_path, tmp_path / "m", tiny_models.texts(20), [i % 3 for i in range(20)])
    assert ended.how == "done" and (out / NAME).exists()


@pytest.mark.parametrize(
    "change, lines, labels, kind",
    [
        ({}, tiny_models.texts(3), None, "too-few-samples"),
        ({"model_type": "unheard"}, tiny_models.texts(20), None, "not-runnable"),
        ({"num_hidden_layers": 10**9}, tiny_models.texts(20), None, "not-runnable"),
        ({}, tiny_models.texts(20), [9] * 20, "labels-mismatch"),
    ],
)
def test_a_refusal_is_told_as_a_problem(zygote, tmp_path, change, lines, labels, kind):
    tiny_models.build("classifier", tmp_path / "m")
    tiny_models.edit_config(tmp_path / "m", **change)
    ended, _, _ = calibrated(zygote, tmp_path, tmp_path / "m", lines, labels)
    assert ended.how == "failed" and ended.problem["type"] == kind, ended


def test_memory_that_runs_out_is_told_as_that(zygote, tmp_path):
    tiny_models.build("bert", tmp_path / "m", vocab_size=200_000, hidden_size=64)
    ended, _, _ = calibrated(zygote, tmp_path, tmp_path / "m", tiny_models.texts(20), limits=Limits(64 << 20, 1 << 30, 1))
    assert ended.how == "failed" and ended.problem["type"] == "out-of-memory", ended


def test_compression_goes_by_them(zygote, tmp_path):
    """The pruned tensors are those that `worker.kernels.saliency` makes of the file."""
    tiny_models.build("bert", tmp_path / "m")
    _, _, out = calibrated(zygote, tmp_path, tmp_path / "m", tiny_models.texts(30))
    (tmp_path / "result").mkdir()
    recipe = {"steps": [{"method": "prune", "saliency": "fisher", "sparsity": 0.5}]}
    spec = {"recipe": recipe, "output": {"format": "safetensors"}, "gates": {}, "sanitize": "report", "beside": {"statistics": str(out / NAME)}}
    pipeline.run(tmp_path / "m", tmp_path / "result", spec, lambda event: None)
    before, after = load_file(tmp_path / "m" / "model.safetensors"), load_file(tmp_path / "result" / "files" / "model.safetensors")
    name, statistics = "encoder.layer.1.output.dense.weight", Statistics.open(out / NAME)
    score = (before[name].square() * statistics.square(name)).double()
    for row, kept in zip(score, after[name] != 0, strict=True):
        assert int(kept.sum()) == len(row) // 2 and row[kept].min() >= row[~kept].max()
    assert "no gradient reaches it" in (tmp_path / "result" / "report.json").read_text()
