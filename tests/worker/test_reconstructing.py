"""GPTQ, Wanda and SparseGPT on whole models: what is written and reported, and that a later child goes on from finished blocks to the same bytes."""

from __future__ import annotations

import json
import random
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch

from app.recipe import parse_recipe
from worker import child, reconstructing
from worker.output import reopen
from worker.zygote import Limits, serving

LIMITS = Limits(memory=4 << 30, file_bytes=1 << 30, threads=1)
GPTQ = {"method": "quantize", "algorithm": "gptq", "num_bits": 4, "group_size": 8, "scale_search": "mse"}
ROUND = {"method": "quantize", "algorithm": "autoround", "num_bits": 3, "group_size": 8, "scale_search": "mse", "steps": 8}
AWQ = {"method": "quantize", "algorithm": "awq", "num_bits": 3, "group_size": 8}
SPARSE = {"method": "prune", "saliency": "sparsegpt", "sparsity": 0.5}


@pytest.fixture
def zygote(zygotes):
    return serving(zygotes, "worker.reconstructing:child")


@pytest.fixture(scope="module")
def calibration(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("calibration")
    (folder / "text.txt").write_text("\n".join(tiny_models.texts(60)))
    return folder


def spec_of(steps: list[dict], beside: dict[str, Path], output: str = "packed") -> dict:
    recipe = parse_recipe({"steps": steps}).model_dump(mode="json")
    return {"recipe": recipe, "output": {"format": output}, "gates": {}, "sanitize": "strip", "seed": 0, "device": "cpu", "beside": {r: str(p) for r, p in beside.items()}}


def here(model: Path, out: Path, steps: list[dict], beside: dict[str, Path], output: str = "packed", **changes) -> dict:
    out.mkdir(parents=True)
    reconstructing.run(model, out, spec_of(steps, beside, output) | changes, lambda event: None)
    return json.loads((out / "report.json").read_text())


def values(out: Path, output: str = "packed") -> dict[str, torch.Tensor]:
    with reopen(output, out / "files") as result:
        report = json.loads((out / "report.json").read_text())
        return {r["name"]: result.read(r["name"]).clone() for r in report["tensors"] if r["action"] in ("quantized", "pruned")}


def test_a_jailed_child_does_it_and_reports(zygote, calibration, tmp_path):
    tiny_models.build("llama", tmp_path / "m")
    out, told = tmp_path / "out", []
    out.mkdir()
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(spec_of([SPARSE, GPTQ, {"method": "lossless"}], {"calibration": calibration})))
    ended = child.run(zygote, tmp_path / "m", out, spec, LIMITS, stop=lambda: False, seconds=250, progress=told.append, read=[calibration])
    assert ended.how == "done", ended
    assert {"reconstruct", "compress", "verify"} <= {t["stage"] for t in told}
    report = json.loads((out / "report.json").read_text())
    assert report["reconstruction"] == {"samples": 48, "stages": 2, "sequential": True, "layers": 14}
    rows = [r for r in report["tensors"] if r["action"] == "quantized"]
    assert len(rows) == 14 and all(r["sparsity"] >= 0.5 and "output error" in " ".join(r["notes"]) for r in rows)
    assert sorted(p.name for p in (out / "resume").iterdir()) == ["00000.safetensors", "00001.safetensors"]


@pytest.mark.parametrize("name", ["bert", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gpt2", "vit", "mixtral"))])
def test_errors_of_outputs_are_smaller_than_by_rounding(calibration, tmp_path, name):
    tiny_models.build(name, tmp_path / "m")
    if name == "vit":
        calibration = tmp_path / "c"
        calibration.mkdir()
        np.savez(calibration / "x.npz", pixel_values=np.random.default_rng(0).normal(size=(60, 3, 8, 8)).astype("f4"))
    plain = GPTQ | {"num_bits": 3}
    report = here(tmp_path / "m", tmp_path / "a", [plain], {"calibration": calibration})
    assert report["reconstruction"]["layers"] == sum(r["action"] == "quantized" and "output error" in " ".join(r["notes"]) for r in report["tensors"])
    from worker.measuring import run as measure

    cosines = []
    for out, steps in ((tmp_path / "a", [plain]), (tmp_path / "b", [{k: v for k, v in plain.items() if k != "algorithm"}])):
        if not out.exists():
            here(tmp_path / "m", out, steps, {"calibration": calibration}) if steps[0].get("algorithm") else _plain(tmp_path / "m", out, steps)
        (measured := tmp_path / f"{out.name}-measured").mkdir()
        measure(out, measured, spec_of(steps, {"calibration": calibration, "original": tmp_path / "m"}), lambda event: None)
        quality = json.loads((measured / "report.json").read_text())["quality"]
        cosines.append(quality.get("cosine", -quality.get("kl", 0)))
    assert cosines[0] > cosines[1]


def _plain(model: Path, out: Path, steps: list[dict]) -> None:
    from worker import pipeline

    out.mkdir()
    pipeline.run(model, out, spec_of(steps, {}), lambda event: None)


SUPER = {"num_bits": 4, "group_size": 32, "scale_bits": 6, "symmetric": False}


@pytest.mark.parametrize("steps", [[GPTQ], [SPARSE, GPTQ | SUPER], [SPARSE, GPTQ | {"activation_order": True}], [{"method": "prune", "saliency": "wanda", "mask_structure": "2:4"}], [SPARSE, ROUND], [AWQ | {"symmetric": False}]], ids=["gptq", "super", "both", "wanda", "autoround", "awq"])
def test_what_goes_on_from_finished_blocks_comes_to_the_same_bytes(calibration, tmp_path, steps, monkeypatch):
    tiny_models.build("bert", tmp_path / "m")
    here(tmp_path / "m", tmp_path / "whole", steps, {"calibration": calibration})
    bytes_of = {p.name: p.read_bytes() for p in (tmp_path / "whole" / "files").iterdir()}
    solved = []
    solve = reconstructing.begin
    monkeypatch.setattr(reconstructing, "begin", lambda plan, *rest: solved.append(plan.spec.name) or solve(plan, *rest))
    for count in (1, 2):
        (resume := tmp_path / f"left{count}").mkdir()
        for number in range(count):
            shutil.copy(tmp_path / "whole" / "resume" / f"{number:05}.safetensors", resume)
        solved.clear()
        here(tmp_path / "m", tmp_path / f"again{count}", steps, {"calibration": calibration, "resume": resume})
        assert {p.name: p.read_bytes() for p in (tmp_path / f"again{count}" / "files").iterdir()} == bytes_of
        assert not any(f"layer.{number}." in name for name in solved for number in range(count))
        assert len(list((tmp_path / f"again{count}" / "resume").iterdir())) == 3  # the pooler is a stage of its own


@pytest.mark.slow
def test_a_worker_that_is_killed_twenty_times_comes_to_the_same_bytes(zygote, calibration, tmp_path):
    """Each attempt is killed at a random moment and leaves what it has finished; whole files among it are all that the next one has."""
    tiny_models.build("bert", tmp_path / "m", num_hidden_layers=24)
    steps, draw, resumed = [SPARSE, GPTQ], random.Random(0), 0
    here(tmp_path / "m", tmp_path / "whole", steps, {"calibration": calibration})
    kept = tmp_path / "kept"
    kept.mkdir()
    for attempt in range(21):
        folder = tmp_path / f"attempt{attempt}"
        (out := folder / "out").mkdir(parents=True)
        (spec := folder / "spec.json").write_text(json.dumps(spec_of(steps, {"calibration": calibration, "resume": kept})))
        end = time.monotonic() + draw.uniform(0.2, 4.0)
        stop = (lambda end=end: time.monotonic() > end) if attempt < 20 else (lambda: False)
        ended = child.run(zygote, tmp_path / "m", out, spec, LIMITS, stop=stop, seconds=250, progress=lambda p: None, read=[calibration, kept])
        assert ended.how in ("stopped", "done"), ended
        resumed += any(kept.iterdir())
        if ended.how == "done":
            assert {p.name: p.read_bytes() for p in (out / "files").iterdir()} == {p.name: p.read_bytes() for p in (tmp_path / "whole" / "files").iterdir()}
            shutil.rmtree(kept)
            kept.mkdir()
            continue
        for path in (out / "resume").glob("[0-9]*.safetensors"):
            shutil.copy(path, kept)
    assert ended.how == "done" and resumed >= 3


def test_a_block_that_was_left_broken_is_done_anew(calibration, tmp_path):
    tiny_models.build("bert", tmp_path / "m")
    here(tmp_path / "m", tmp_path / "whole", [GPTQ], {"calibration": calibration})
    left = shutil.copytree(tmp_path / "whole" / "resume", tmp_path / "left")
    data = bytearray((left / "00000.safetensors").read_bytes())
    data[-1] ^= 1
    (left / "00000.safetensors").write_bytes(data)
    here(tmp_path / "m", tmp_path / "again", [GPTQ], {"calibration": calibration, "resume": left})
    a, b = values(tmp_path / "whole"), values(tmp_path / "again")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_masks_hold(calibration, tmp_path):
    tiny_models.build("bert", tmp_path / "m")
    for number, step in enumerate(({"mask_structure": "2:4"}, {"sparsity": 0.7}, {"sparsity": 0.7, "scope": "tensor"})):
        for saliency in ("wanda", "sparsegpt"):
            out = tmp_path / f"{saliency}{number}"
            here(tmp_path / "m", out, [{"method": "prune", "saliency": saliency} | step], {"calibration": calibration})
            for name, w in values(out).items():
                zeros = (w == 0).float()
                if "mask_structure" in step:
                    assert bool((zeros.reshape(w.shape[0], -1, 4).sum(-1) >= 2).all()), name
                elif "scope" in step:
                    assert int(zeros.sum()) >= int(0.7 * w.numel()), name
                else:
                    assert bool((zeros.sum(1) >= int(0.7 * w.shape[1])).all()), name


def test_a_mask_from_elsewhere_is_kept_while_it_rounds(calibration, tmp_path):
    tiny_models.build("bert", tmp_path / "m")
    prune = {"method": "prune", "sparsity": 0.5}
    report = here(tmp_path / "m", tmp_path / "a", [prune, GPTQ | {"symmetric": False}], {"calibration": calibration})
    assert all(r["sparsity"] >= 0.5 for r in report["tensors"] if r["action"] == "quantized")


def test_a_layer_of_which_nothing_is_known_is_rounded_by_its_weights_and_says_so(calibration, tmp_path):
    tiny_models.build("bert", tmp_path / "m")
    report = here(tmp_path / "m", tmp_path / "a", [GPTQ | {"targets": ["*word_embeddings.weight", "*query.weight"], "ignore": []}], {"calibration": calibration})
    notes = {r["name"]: " ".join(r["notes"]) for r in report["tensors"] if r["action"] == "quantized"}
    assert len(notes) == 3 and all(("is not known" in note) == ("embeddings" in name) and ("output error" in note) == ("query" in name) for name, note in notes.items())


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])
def test_every_expert_is_worked_on_by_what_it_is_given(calibration, tmp_path, name):
    from transformers import AutoModelForCausalLM

    from worker.reloaded import reloaded

    tiny_models.build(name, tmp_path / "m")
    report = here(tmp_path / "m", tmp_path / "a", [{"method": "prune", "saliency": "wanda"}, GPTQ], {"calibration": calibration})
    rows = {r["name"]: r for r in report["tensors"] if "experts" in r["name"]}
    assert len(rows) >= 2 * 3 * 3 and all(r["action"] == "quantized" and r["sparsity"] >= 0.5 for r in rows.values())
    notes = [" ".join(r["notes"]) for r in rows.values()]
    assert sum("output error" in note for note in notes) > len(rows) / 2
    assert all("output error" in note or "fewer than 16" in note or "is not known" in note for note in notes)
    (tmp_path / "scratch").mkdir()
    with reloaded("packed", tmp_path / "a" / "files", tmp_path / "scratch", lambda n: None) as (folder, checkpoint):
        assert all(torch.equal(checkpoint.read(n), w) for n, w in values(tmp_path / "a").items())
        AutoModelForCausalLM.from_pretrained(folder)


def test_an_expert_that_few_tokens_reach_is_rounded_without_them(calibration, tmp_path):
    tiny_models.build("mixtral", tmp_path / "m", num_local_experts=16, num_experts_per_tok=1)
    notes = {r["name"]: " ".join(r["notes"]) for r in here(tmp_path / "m", tmp_path / "a", [GPTQ], {"calibration": calibration})["tensors"] if ".experts." in r["name"]}
    assert any("fewer than 16: rounded to the nearest" in note for note in notes.values()) and any("output error" in note for note in notes.values())


@pytest.mark.parametrize("options", [{}, {"strategy": "channel", "activation_order": True}, {"algorithm": "autoround", "steps": 4, "symmetric": False}], ids=str)
def test_transformers_decompresses_to_the_values_that_were_meant(calibration, tmp_path, options):
    from transformers import AutoModel, CompressedTensorsConfig

    tiny_models.build("bert", tmp_path / "m")
    step = {k: v for k, v in (GPTQ | options).items() if not (k == "group_size" and "strategy" in options)}
    here(tmp_path / "m", tmp_path / "a", [step], {"calibration": calibration}, "compressed-tensors")
    meant = values(tmp_path / "a", "compressed-tensors")
    loaded = dict(AutoModel.from_pretrained(tmp_path / "a" / "files", dtype=torch.float32, quantization_config=CompressedTensorsConfig(run_compressed=False)).named_parameters())
    assert len(meant) == 13 and all(torch.equal(loaded[name], w) for name, w in meant.items())


def test_learned_rounding_is_nearer_to_the_original_than_what_it_begins_with(calibration, tmp_path):
    """Of blocks, and of the pooler, which is a layer outside of them."""
    tiny_models.build("bert", tmp_path / "m")
    report = here(tmp_path / "m", tmp_path / "a", [ROUND | {"num_bits": 2, "steps": 40}], {"calibration": calibration})
    told = [re.search(r"output error of its (\w+) ([\d.]+) before, ([\d.]+) after 40 steps", " ".join(r["notes"])) for r in report["tensors"] if r["action"] == "quantized"]
    assert sorted({m[1] for m in told}) == ["block", "layer"] and len(told) == 13
    assert all(float(m[3]) < 0.95 * float(m[2]) for m in told)


def test_learned_rounding_keeps_masks_and_its_seed(calibration, tmp_path):
    tiny_models.build("llama", tmp_path / "m")
    steps = [{"method": "prune", "saliency": "wanda"}, ROUND | {"symmetric": False}]
    found = [values(here(tmp_path / "m", tmp_path / f"{i}", steps, {"calibration": calibration}, seed=seed) and tmp_path / f"{i}") for i, seed in enumerate((0, 0, 1))]
    assert all(float((w == 0).float().mean()) >= 0.5 for w in found[0].values())
    assert all(torch.equal(w, found[1][name]) for name, w in found[0].items()) and not all(torch.equal(w, found[2][name]) for name, w in found[0].items())


def test_scaled_inputs_are_never_worse_for_a_layer_than_rounding_is(calibration, tmp_path):
    """Told of each matrix; what is read back is what was meant, and takes a float16 more for each input where it is scaled."""
    tiny_models.build("bert", tmp_path / "m")
    rows = {out: {r["name"]: r for r in here(tmp_path / "m", tmp_path / out, [step | {"sequential": False}], {"calibration": calibration})["tensors"] if r["action"] == "quantized"}
            for out, step in (("a", AWQ), ("b", ROUND | {"steps": 1}))}  # fmt: skip
    of = lambda r: float(re.search(r"output error ([\d.]+)", " ".join(r["notes"]))[1])  # noqa: E731
    scaled = [name for name, r in rows["a"].items() if "to the power of" in " ".join(r["notes"])]
    assert len(rows["a"]) == 13 and scaled
    plain = rounded_by(tmp_path / "m", calibration, tmp_path / "c")
    assert all(of(r) <= plain[name] + 1e-4 for name, r in rows["a"].items()) and any(of(rows["a"][name]) < 0.97 * plain[name] for name in scaled)
    assert all(rows["a"][name]["bytes_after"] > rows["b"][name]["bytes_after"] for name in scaled)


def rounded_by(model: Path, calibration: Path, out: Path) -> dict[str, float]:
    """Output errors of layers that are rounded as awq does without scales."""
    from worker.kernels import input_scaling

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(input_scaling, "ALPHAS", (0.0,))
        report = here(model, out, [AWQ | {"sequential": False}], {"calibration": calibration})
    return {r["name"]: float(re.search(r"output error ([\d.]+)", " ".join(r["notes"]))[1]) for r in report["tensors"] if r["action"] == "quantized"}
