"""Whole jobs in one process: every recipe, output and kind of upload, read back, restored and accounted for."""

from __future__ import annotations

import json
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.errors import GateFailed, InputRefused, NoTensorMatched
from worker import pipeline

CORPUS = Path(__file__).parents[3] / "shared" / "hostile" / "corpus.tar.xz"
RECIPES = {
    "lossless": [{"method": "lossless"}],
    "int4": [{"method": "quantize", "num_bits": 4, "group_size": 32, "scale_search": "mse"}],
    "uint3": [{"method": "quantize", "num_bits": 3, "group_size": 50, "symmetric": False}],
    "fp8": [{"method": "quantize", "num_bits": 8, "type": "float", "strategy": "tensor"}],
    "prune": [{"method": "prune", "scope": "global"}],
    "2:4": [{"method": "prune", "mask_structure": "2:4"}],
    "all": [{"method": "prune", "sparsity": 0.7}, {"method": "quantize", "num_bits": 5}, {"method": "lossless"}],
}
RESTORE = {"recipe": {"steps": [{"method": "restore"}]}, "output": {"format": "original"}, "sanitize": "report"}


def run(source: Path, out: Path, steps: list, output: str = "packed", **rest) -> dict:
    spec = {"recipe": {"steps": steps}, "output": {"format": output}, "gates": {}, "sanitize": "report"} | rest
    pipeline.run(source, out, spec, lambda event: None)
    return json.loads((out / "report.json").read_text())


def restored(out: Path, into: Path) -> Path:
    pipeline.run(out / "files", into, RESTORE, lambda event: None)
    return into / "files"


def tensors() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    shared = torch.randn(40, 60, generator=g)
    return {
        "layers.0/weird name.weight": shared,
        "layers.1.weight": torch.randn(33, 70, generator=g).bfloat16(),
        "layers.2.weight": torch.randn(8, 16, generator=g).half(),
        "layers.3.weight": torch.randn(8, 16, generator=g).double(),
        "conv.weight": torch.randn(4, 3, 3, 3, generator=g),
        "embed_tokens.weight": torch.randn(20, 8, generator=g),
        "norm.weight": torch.ones(8),
        "scalar": torch.tensor(3),
        "empty.weight": torch.empty(0, 8),
        "flags": torch.tensor([True, False]),
        "ids": torch.arange(5),
        "f8": torch.randn(4, 4, generator=g).to(torch.float8_e4m3fn),
    }


@pytest.fixture
def single(tmp_path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    save_file(tensors(), folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_into_packed_and_back(single, tmp_path, recipe):
    report = run(single, tmp_path / "out", RECIPES[recipe])
    assert {r["name"] for r in report["tensors"]} == set(tensors())
    back = restored(tmp_path / "out", tmp_path / "back")
    if recipe == "lossless":
        assert (back / "model.safetensors").read_bytes() == (single / "model.safetensors").read_bytes()
        return
    got, original = load_file(back / "model.safetensors"), tensors()
    rows = {r["name"]: r for r in report["tensors"]}
    for name, t in original.items():
        assert got[name].dtype == t.dtype and got[name].shape == t.shape
        if rows[name]["action"] in ("copied", "encoded"):
            assert torch.equal(got[name].reshape(-1).view(torch.uint8), t.reshape(-1).view(torch.uint8))
        else:
            error = (got[name].double() - t.double()).norm() / t.double().norm()
            assert error.item() == pytest.approx(rows[name].get("relative_error", 0), abs=1e-6)
    changed = {"layers.0/weird name.weight", "layers.1.weight", "layers.2.weight", "layers.3.weight", "conv.weight"}
    assert {n for n, r in rows.items() if r["action"] in ("pruned", "quantized")} == changed


@pytest.mark.parametrize("recipe", ["int4", "prune", "2:4"])
def test_into_plain_safetensors(single, tmp_path, recipe):
    run(single, tmp_path / "out", RECIPES[recipe], "safetensors")
    got = load_file(tmp_path / "out" / "files" / "model.safetensors")
    assert {n: (t.dtype, t.shape) for n, t in got.items()} == {n: (t.dtype, t.shape) for n, t in tensors().items()}
    if recipe == "2:4":
        assert ((got["layers.0/weird name.weight"].reshape(-1, 4) != 0).sum(1) == 2).all()


def checkpoint(path: Path) -> dict:
    w = torch.randn(12, 20)
    state = {"encoder.weight": w, "decoder.weight": w, "bias": torch.zeros(12), "steps": torch.tensor(7)}
    torch.save({"model_state_dict": state, "optimizer_state_dict": {"state": {0: {"exp_avg": torch.randn(12, 20)}}}, "epoch": 3}, path)
    return state


def test_a_training_checkpoint(tmp_path):
    (tmp_path / "in").mkdir()
    state = checkpoint(tmp_path / "in" / "last.pt")
    run(tmp_path / "in", tmp_path / "lossless", RECIPES["lossless"])
    assert (restored(tmp_path / "lossless", tmp_path / "b1") / "last.pt").read_bytes() == (tmp_path / "in" / "last.pt").read_bytes()
    report = run(tmp_path / "in", tmp_path / "out", RECIPES["prune"])
    rows = {r["name"]: r for r in report["tensors"]}
    assert rows["optimizer_state_dict"]["action"] == "dropped" and "training" in rows["optimizer_state_dict"]["reason"]
    assert sorted(r["action"] for n, r in rows.items() if n in ("encoder.weight", "decoder.weight")) == ["copied", "pruned"]
    got = load_file(restored(tmp_path / "out", tmp_path / "b2") / "last.safetensors")
    assert got.keys() == state.keys() and torch.equal(got["encoder.weight"], got["decoder.weight"]) and (got["encoder.weight"] == 0).sum() == 120


def test_level_max_is_smaller_and_comes_back(tmp_path):
    (tmp_path / "in").mkdir()
    r = torch.Generator().manual_seed(1)
    w = {name: torch.randn(300, 200, generator=r) * torch.randn(200, generator=r).exp() for name in ("a.weight", "b.weight")}
    save_file({n: t.bfloat16() for n, t in w.items()}, tmp_path / "in" / "model.safetensors")
    largest = {"method": "lossless", "level": "max"}
    sizes = [run(tmp_path / "in", tmp_path / f"{i}", steps)["totals"]["bytes_after"] for i, steps in enumerate(([{"method": "lossless"}], [largest | {"targets": ["a*"]}, {"method": "lossless"}], [largest]))]
    assert sizes[0] > sizes[1] > sizes[2]
    for i in (1, 2):
        assert (restored(tmp_path / f"{i}", tmp_path / f"back-{i}") / "model.safetensors").read_bytes() == (tmp_path / "in" / "model.safetensors").read_bytes()
    quantized = {"method": "quantize", "num_bits": 8, "targets": ["b*"]}
    rows = [{r["name"]: r["bytes_after"] for r in run(tmp_path / "in", tmp_path / f"some-{level}", [quantized, {"method": "lossless", "level": level}])["tensors"]} for level in ("normal", "max")]
    assert rows[0]["a.weight"] > rows[1]["a.weight"] and rows[0]["b.weight"] == rows[1]["b.weight"]
    assert torch.equal(load_file(restored(tmp_path / "some-max", tmp_path / "back-some") / "model.safetensors")["a.weight"], w["a.weight"].bfloat16())


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_an_archive_comes_back_member_by_member(tmp_path, kind):
    model, folder = tmp_path / "model", tmp_path / "in"
    for d in (model / "sub", folder):
        d.mkdir(parents=True)
    save_file(tensors(), model / "model.safetensors")
    (model / "config.json").write_text('{"model_type": "llama"}')
    (model / "sub" / "notes.txt").write_text("hello\n" * 100)
    archive = folder / f"m.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as z:
            for p in sorted(model.rglob("*")):
                z.write(p, p.relative_to(model))
    else:
        with tarfile.open(archive, "w:gz") as t:
            t.add(model, arcname="top")
    run(folder, tmp_path / "out", RECIPES["lossless"])
    back = restored(tmp_path / "out", tmp_path / "back") / ("" if kind == "zip" else "top")
    for p in (p for p in model.rglob("*") if p.is_file()):
        assert (back / p.relative_to(model)).read_bytes() == p.read_bytes()


def test_sanitizing_strips_what_tells(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    save_file({"a.weight": torch.randn(8, 8)}, folder / "model.safetensors", {"format": "pt", "author": "jane@example.org", "path": "/home/jane/run1"})
    (folder / "config.json").write_text("{}")
    (folder / "trainer_state.json").write_text("{}")
    for recipe in ("lossless", "int4"):
        report = run(folder, tmp_path / recipe, RECIPES[recipe], sanitize="strip")
        assert report["sanitized"]["findings"]
        back = restored(tmp_path / recipe, tmp_path / f"{recipe}-back")
        assert {p.name for p in back.iterdir()} == {"model.safetensors", "config.json"}
        assert b"jane" not in (back / "model.safetensors").read_bytes() and b"jane" not in (tmp_path / recipe / "files" / "model.packed.safetensors").read_bytes()
    run(folder, tmp_path / "kept", RECIPES["lossless"])
    assert (restored(tmp_path / "kept", tmp_path / "kept-back") / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_a_missed_gate_leaves_its_report(single, tmp_path):
    with pytest.raises(GateFailed, match="max_relative_error"):
        run(single, tmp_path / "out", RECIPES["int4"], gates={"max_relative_error": 0.001})
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert not report["gates"]["max_relative_error"]["passed"] and report["tensors"]


def test_a_recipe_that_matches_nothing(single, tmp_path):
    with pytest.raises(NoTensorMatched, match="conv.weight"):
        run(single, tmp_path / "out", [{"method": "prune", "targets": ["nope.*"]}])


def test_restore_of_something_else_is_refused(single, tmp_path):
    with pytest.raises(InputRefused, match="packed file or a compressed-tensors folder"):
        pipeline.run(single, tmp_path / "out", RESTORE, lambda event: None)


def test_a_repeated_job_repeats_its_bytes(single, tmp_path):
    found = []
    for i in range(2):
        run(single, tmp_path / str(i), RECIPES["all"])
        found.append((tmp_path / str(i) / "files" / "model.packed.safetensors").read_bytes())
    assert found[0] == found[1]


@pytest.mark.skipif(not CORPUS.exists(), reason="the hostile corpus is not beside this clone")
@pytest.mark.parametrize("recipe", RECIPES)
def test_odd_numbers_get_through_every_recipe(tmp_path, recipe):
    with tarfile.open(CORPUS) as t:
        members = [m for m in t.getmembers() if Path(m.name).name.startswith("w_ok_")]
        t.extractall(tmp_path / "corpus", members=members, filter="data")
    files = sorted((tmp_path / "corpus").rglob("w_ok_*"))
    assert len(files) >= 7
    for path in files:
        folder = tmp_path / path.stem / "in"
        folder.mkdir(parents=True)
        path.rename(folder / path.name)
        try:
            report = run(folder, folder.parent / "out", RECIPES[recipe])
        except NoTensorMatched as e:  # nothing in the file is a matrix of numbers
            assert "rank" in str(e) or "empty" in str(e) or "not the weight" in str(e), (path, e)
            continue
        got = load_file(restored(folder.parent / "out", folder.parent / "back") / path.name)
        original = load_file(folder / path.name)
        for r in report["tensors"]:
            if r["action"] in ("copied", "encoded"):
                assert torch.equal(got[r["name"]].reshape(-1).view(torch.uint8), original[r["name"]].reshape(-1).view(torch.uint8)), (path, r)
            else:
                assert torch.isfinite(got[r["name"]]).all(), (path, r)
