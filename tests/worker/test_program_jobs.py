"""Whole jobs on programs of torch.export: every output, what is stripped, restored, and proven in the jail."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from program_attacks import attacks, silent
from programs import exported, with_members
from safetensors.torch import load_file

from app.errors import InputRefused, LoadProofFailed
from worker import child, pipeline
from worker.program_proof import prove
from worker.zygote import Limits, serving

RESTORE = {"recipe": {"steps": [{"method": "restore"}]}, "output": {"format": "original"}, "sanitize": "report"}
PRUNE, INT4, LOSSLESS = ([{"method": "prune"}], [{"method": "quantize", "num_bits": 4}], [{"method": "lossless"}])


def run(source: Path, out: Path, steps: list, output: str = "packed", **rest) -> dict:
    pipeline.run(source, out, {"recipe": {"steps": steps}, "output": {"format": output}, "gates": {}, "sanitize": "report"} | rest, lambda event: None)
    return json.loads((out / "report.json").read_text())


@pytest.fixture
def source(tmp_path):
    def of(data: bytes) -> Path:
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in/net.pt2").write_bytes(data)
        return tmp_path / "in"

    return of


def rows(report: dict) -> dict[str, dict]:
    return {r["name"]: r for r in report["tensors"]}


@pytest.mark.parametrize("name, steps", [("mlp", PRUNE), ("convolution", PRUNE + INT4), ("tokens", INT4)])
def test_the_program_again_with_other_values(tmp_path, source, name, steps):
    report = run(source(exported(name)), tmp_path / "out", steps, "pt2", sanitize="strip")
    before, after = (torch.export.load(tmp_path / where / "net.pt2") for where in ("in", "out/files"))
    changed = {n for n, r in rows(report).items() if r["action"] in ("pruned", "quantized")}
    aliases = {n for n, r in rows(report).items() if r.get("reason", "").startswith("tied to") and n.endswith("weight")}
    assert changed and {n for n, v in before.state_dict.items() if not torch.equal(v, after.state_dict[n])} == changed | aliases
    assert {n: v.shape for n, v in before.state_dict.items()} == {n: v.shape for n, v in after.state_dict.items()}
    if steps == PRUNE:
        assert all((after.state_dict[n] == 0).float().mean() >= 0.4 for n in changed)
    assert rows(report)["models/model.json"]["action"] == "copied" and rows(report)["data/sample_inputs/model.pt"]["action"] == "dropped"
    assert {f["where"] for f in report["sanitized"]["findings"]} >= {"models/model.json: stack traces", "data/sample_inputs/model.pt"}
    assert b"/home/ann" not in (tmp_path / "out/files/net.pt2").read_bytes()
    assert prove(tmp_path / "out/files/net.pt2")["ran"]["finite"] is True


def test_lossless_keeps_every_byte(tmp_path, source):
    report = run(source(exported("convolution")), tmp_path / "out", LOSSLESS)
    pipeline.run(tmp_path / "out/files", tmp_path / "again", RESTORE, lambda event: None)
    assert (tmp_path / "again/files/net.pt2").read_bytes() == exported("convolution")
    assert report["container"] == "pt2" and rows(report)["l.weight"]["action"] == "encoded" and not any(r["action"] == "dropped" for r in report["tensors"])


def test_lossless_and_strip_keep_the_program_that_is_safe(tmp_path, source):
    run(source(exported("mlp")), tmp_path / "out", LOSSLESS, sanitize="strip")
    pipeline.run(tmp_path / "out/files", tmp_path / "again", RESTORE, lambda event: None)
    again = tmp_path / "again/files/net.pt2"
    assert b"/home/ann" not in again.read_bytes() and torch.export.load(again).module()(torch.zeros(3, 6)).shape == (3, 3)


@pytest.mark.parametrize("output", ["packed", "safetensors"])
def test_weights_alone(tmp_path, source, output):
    report = run(source(exported("convolution")), tmp_path / "out", INT4, output)
    folder = tmp_path / "out/files"
    if output == "packed":
        pipeline.run(folder, tmp_path / "again", RESTORE, lambda event: None)
        folder = tmp_path / "again/files"
    assert [p.name for p in folder.iterdir()] == ["net.safetensors"]
    state = torch.export.load(tmp_path / "in/net.pt2").state_dict
    assert {n: tuple(t.shape) for n, t in load_file(folder / "net.safetensors").items()} == {n: tuple(t.shape) for n, t in state.items()}
    program = rows(report)["models/model.json"]
    assert program["action"] == "dropped" and "the program itself" in program["reason"] and rows(report)["constant k"]["action"] == "dropped"


def test_a_program_inside_a_packed_file_goes_on(tmp_path, source):
    run(source(exported("mlp")), tmp_path / "first", LOSSLESS)
    report = run(tmp_path / "first/files", tmp_path / "second", PRUNE, "pt2")
    assert rows(report)["fc1.weight"]["action"] == "pruned" and (tmp_path / "second/files/net.pt2").exists()


def test_a_program_among_other_files_is_judged_too(tmp_path, source):
    folder = source(attacks(str(tmp_path / "canary"))["pickled weight"])
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputRefused) as refusal:
        run(folder, tmp_path / "out", LOSSLESS)
    assert refusal.value.type in ("unsafe-pt2", "invalid-safetensors") and not (tmp_path / "canary").exists()


def test_a_result_with_more_in_it_is_no_proof(tmp_path, source):
    path = source(with_members(exported("mlp"), {"extra/x": b"1"})) / "net.pt2"
    with pytest.raises(LoadProofFailed, match="must not"):
        prove(path)


@pytest.fixture
def prover(zygotes):
    return serving(zygotes, "worker.proof:prove")


@pytest.mark.parametrize("name", ["mlp", "convolution", "tokens"])
def test_the_proof_in_the_jail(tmp_path, source, prover, name):
    """What torch.export does to load and run a program, the jail lets it do."""
    report = run(source(exported(name)), tmp_path / "out", INT4, "pt2", sanitize="strip")
    shutil.rmtree(tmp_path / "out/scratch")
    (tmp_path / "proof").mkdir()
    (tmp_path / "spec.json").write_text("{}")
    limits = Limits(4 << 30, 1 << 30, 2)
    ended = child.run(prover, tmp_path / "out", tmp_path / "proof", tmp_path / "spec.json", limits, stop=lambda: False, seconds=250, progress=lambda event: None)
    assert ended.how == "done", ended
    proof = json.loads((tmp_path / "proof/report.json").read_text())["load_proof"]["torch.export"]
    assert proof["loaded"] and proof["ran"]["finite"] and proof["tensors"] == sum(1 for r in report["tensors"] if r["dtype"])


@pytest.mark.parametrize("name", silent("x"))
def test_silent_attacks_come_out_clean(tmp_path, source, name):
    canary = tmp_path / "canary"
    run(source(silent(str(canary))[name]), tmp_path / "out", PRUNE, "pt2", sanitize="strip")
    prove(tmp_path / "out/files/net.pt2")
    assert not canary.exists() and b"touch" not in (tmp_path / "out/files/net.pt2").read_bytes()
