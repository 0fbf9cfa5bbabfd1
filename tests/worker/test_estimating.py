"""Estimates of what has to be parsed first, held against the work: PyTorch checkpoints, archives and packed files."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from worker import estimating, pipeline
from worker.__main__ import main, place

KINDS = ("torch", "deflated torch", "folder", "zip", "tar", "packed")


def state() -> dict[str, torch.Tensor]:
    """With a tie, a transposed view, two tensors in one storage and integers."""
    g = torch.Generator().manual_seed(5)
    both = torch.randn(2, 256, 128, generator=g) * 0.05
    found = {"wte.weight": torch.randn(400, 128, generator=g) * 0.02, "a.weight": both[0], "b.weight": both[1]}
    found["turned.weight"] = (torch.randn(128, 192, generator=g) * 0.03).t()
    return found | {"lm_head.weight": found["wte.weight"], "steps": torch.arange(64), "a.bias": torch.zeros(256)}


def inflatable(path: Path) -> None:
    """The same checkpoint with deflated records."""
    with zipfile.ZipFile(path) as z:
        members = [(i.filename, z.read(i)) for i in z.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name, body in members:
            z.writestr(name, body)


@pytest.fixture(scope="module", params=KINDS)
def source(request, tmp_path_factory) -> Path:
    """An input of each kind, on disk as a user has it."""
    root = tmp_path_factory.mktemp("source")
    folder = root / "model"
    folder.mkdir()
    torch.save(state(), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps({"model_type": "x", "hidden_size": 128}))
    (folder / "tokenizer.json").write_text(json.dumps({f"token{i}": i for i in range(500)}))
    match request.param:
        case "folder":
            return folder
        case "torch":
            return folder / "pytorch_model.bin"
        case "deflated torch":
            inflatable(folder / "pytorch_model.bin")
            return folder / "pytorch_model.bin"
        case "zip":
            with zipfile.ZipFile(root / "m.zip", "w", zipfile.ZIP_DEFLATED) as z:
                for p in folder.iterdir():
                    z.write(p, p.name)
            return root / "m.zip"
        case "tar":
            with tarfile.open(root / "m.tar.gz", "w:gz") as t:
                for p in folder.iterdir():
                    t.add(p, p.name)
            return root / "m.tar.gz"
    assert main([str(folder), str(root / "out"), "--preset", "lossless"]) == 0
    return root / "out" / "model.packed.safetensors"


def both(source: Path, tmp_path: Path, spec: dict) -> tuple[dict, dict]:
    """The estimate, and the totals of the work."""
    events: list[dict] = []
    for name in ("told", "made"):
        (tmp_path / name).mkdir()
    inp = place(source, tmp_path)
    estimating.run(inp, tmp_path / "told", spec, events.append, rate=1000.0)
    pipeline.run(inp, tmp_path / "made", spec, lambda event: None)
    return events[0]["estimate"], json.loads((tmp_path / "made" / "report.json").read_text())["totals"]


def spec(output: str, *steps: dict) -> dict:
    from app.job_spec import parse_job
    from worker.__main__ import ANY_ID

    return parse_job({"input": ANY_ID, "recipe": {"steps": list(steps)}, "output": {"format": output}}, True).model_dump(mode="json")


@pytest.mark.parametrize("steps", [[{"method": "lossless"}], [{"method": "prune"}], [{"method": "quantize", "num_bits": 4}, {"method": "lossless"}]], ids=["lossless", "prune", "w4"])
def test_coded_bytes_are_within_the_interval_and_near(source, tmp_path, steps):
    said, made = both(source, tmp_path, spec("packed", *steps))
    assert said["bytes_before"] == made["bytes_before"] and said["basis"] == "sample"
    assert said["bytes_least"] <= made["bytes_after"] <= said["bytes_most"], (said["bytes_after"], made["bytes_after"])
    assert said["seconds_basis"] == "measured" and said["seconds"] > made["bytes_before"] / 1000


def test_fixed_rates_are_exact_with_ties(source, tmp_path):
    said, made = both(source, tmp_path, spec("safetensors", {"method": "quantize", "num_bits": 8}))
    assert said["exact"] and {f["path"]: f["bytes"] for f in said["files"]} == made["files"]


def test_a_checkpoint_becomes_an_exact_folder(tmp_path):
    torch.save(state(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "x"}))
    (out := tmp_path.parent / f"{tmp_path.name}-out").mkdir()
    said, made = both(tmp_path, out, spec("compressed-tensors", {"method": "quantize", "num_bits": 4, "group_size": 32}))
    assert said["exact"] and {f["path"]: f["bytes"] for f in said["files"]} == made["files"]


def test_as_a_tool(tmp_path, capsys):
    torch.save(state(), tmp_path / "m.pt")
    run = [sys.executable, "-m", "worker", str(tmp_path / "m.pt"), "--estimate"]
    done = subprocess.run([*run, "--preset", "w8a16", "--rate", "1000"], capture_output=True, text=True)
    said = json.loads(done.stdout)
    assert done.returncode == 0 and said["output_format"] == "packed" and said["actions"]["quantized"]["tensors"] == 3 and [p.name for p in tmp_path.iterdir()] == ["m.pt"]
    (tmp_path / "m.pt").write_bytes(b"x" * 100)
    assert main([str(tmp_path / "m.pt"), "--estimate", "--preset", "lossless"]) == 1
    told = capsys.readouterr()
    assert "[invalid-torch]" in told.err and not told.out
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "m.pt"), "--preset", "lossless"])
