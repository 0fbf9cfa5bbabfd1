"""The hostile corpus: each file gets the verdict of its manifest, within its time and memory, and no payload runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from worker.formats import open_checkpoint

ROOT = Path(__file__).parents[3]
CORPUS = ROOT.parent / "shared" / "hostile" / "corpus.tar.xz"
READ = ("safetensors", "torch", "archive", "confusion", "numeric")
LATER = {"invalid-onnx"}  # reasons of formats that are not read: they answer unsupported-format

pytestmark = pytest.mark.skipif(not CORPUS.exists(), reason="the corpus is not beside this checkout")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The unpacked files, their manifest rows, and the verdict on each from one process."""
    folder = tmp_path_factory.mktemp("corpus")
    with tarfile.open(CORPUS) as tar:
        tar.extractall(folder, filter="data")
    folder = next(folder.rglob("manifest.json")).parent
    manifest = json.loads((folder / "manifest.json").read_text())
    canaries = Path(manifest["canary_dir"])
    canaries.mkdir(exist_ok=True)
    for old in canaries.glob(manifest["canary_glob"]):
        old.unlink()
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("judge.py")), str(folder)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    verdicts = {v["name"]: v for v in map(json.loads, run.stdout.splitlines())}
    assert run.returncode == 0, run.stderr[-2000:]
    return folder, manifest["files"], verdicts, list(canaries.glob(manifest["canary_glob"]))


def test_no_payload_ran(corpus):
    assert corpus[3] == []


def test_every_file_was_judged_in_time_and_nothing_was_written_outside_the_scratch(corpus):
    _, files, verdicts, _ = corpus
    assert {f["name"] for f in files} == verdicts.keys()
    assert {v["name"]: v["cpu"] for v in verdicts.values() if v["cpu"] > 10} == {}
    assert [v for v in verdicts.values() if v["outside"]] == []


@pytest.mark.parametrize("family", READ)
def test_verdicts_and_reasons(corpus, family):
    wrong = []
    for f in corpus[1]:
        got = corpus[2][f["name"]]
        reason = "unsupported-format" if f["reason"] in LATER else f["reason"] or ""
        if f["family"] == family and (got["verdict"], got["reason"]) != (f["expected"], reason):
            wrong.append((f["name"], f["expected"], f["reason"], got))
    assert wrong == []


@pytest.mark.parametrize("family", ["onnx", "numpy", "image"])
def test_formats_that_are_not_read_say_so(corpus, family):
    rows = [corpus[2][f["name"]] for f in corpus[1] if f["family"] == family]
    assert rows and {r["reason"] for r in rows} == {"unsupported-format"}


def test_good_files_read_like_the_public_libraries(corpus, tmp_path):
    folder, files, _, _ = corpus
    compared = 0
    for f in files:
        if f["expected"] == "accepted" and f["name"].endswith((".safetensors", ".pt")):
            inp = tmp_path / f["name"]
            inp.mkdir()
            (inp / f["name"]).write_bytes((folder / f["name"]).read_bytes())
            checkpoint = open_checkpoint(inp, tmp_path)
            if f["name"].endswith(".safetensors"):
                expected = load_file(folder / f["name"])
            else:
                expected = torch.load(folder / f["name"], map_location="cpu", weights_only=True)
                expected = expected.get("model", expected)
            assert {**checkpoint.tensors, **checkpoint.aliases}.keys() == expected.keys()
            for name, tensor in expected.items():
                assert same(checkpoint.read(checkpoint.aliases.get(name, name)), tensor), (f["name"], name)
                compared += 1
    assert compared > 30


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal dtype, shape and bits."""
    a, b = a.detach().contiguous(), b.detach().contiguous()
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
