"""`python -m worker` with data: the stages of a job, one after another and without a service."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from worker.__main__ import main

FISHER = {"steps": [{"method": "prune", "saliency": "fisher", "sparsity": 0.5, "ignore": ["*pooler*"]}]}


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    """`model/`, a small classifier of transformers, and beside it `ids.jsonl`, `labels.txt`, `gradients.safetensors`, `fisher.json`."""
    from transformers import BertConfig, BertForSequenceClassification

    root, rng = tmp_path_factory.mktemp("given"), np.random.default_rng(0)
    torch.manual_seed(0)
    shape = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 16}
    model = BertForSequenceClassification(BertConfig(initializer_range=0.3, num_labels=3, **shape))
    model.save_pretrained(root / "model")
    lines = [json.dumps({"input_ids": rng.integers(1, 60, 9).tolist()}) for _ in range(30)]
    (root / "ids.jsonl").write_text("\n".join(lines))
    (root / "labels.txt").write_text("\n".join(map(str, rng.integers(0, 3, 30))))
    (root / "fisher.json").write_text(json.dumps(FISHER))
    g = torch.Generator().manual_seed(1)
    save_file({n: torch.randn(p.shape, generator=g) for n, p in model.state_dict().items() if p.dim() == 2}, root / "gradients.safetensors")
    return root


def run(given: Path, out: Path, *options: str) -> dict:
    assert main([str(given / "model"), str(out), *options]) == 0
    return json.loads((out / "report.json").read_text())


def test_quality_is_measured(given, tmp_path):
    report = run(given, tmp_path / "out", "--preset", "w8a16", "--calibration", str(given / "ids.jsonl"), "--labels", str(given / "labels.txt"))
    assert report["quality"]["task"] == "classifier" and report["quality"]["cosine"] > 0.999 and report["quality"]["accuracy"] is not None
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"report.json", "config.json", "model.safetensors"}


def test_without_data_nothing_is(given, tmp_path):
    assert "quality" not in run(given, tmp_path / "out", "--preset", "prune-50")


@pytest.mark.parametrize("how", ["gradients", "calibration"])
def test_pruning_goes_by_gradients(given, tmp_path, how):
    path = given / ("gradients.safetensors" if how == "gradients" else "ids.jsonl")
    report = run(given, tmp_path / "out", "--recipe", str(given / "fisher.json"), f"--{how}", str(path), "--format", "safetensors")
    assert ("quality" in report) == (how == "calibration")
    before, after = (load_file(p / "model.safetensors") for p in (given / "model", tmp_path / "out"))
    pruned = [r["name"] for r in report["tensors"] if r["action"] == "pruned"]
    assert len(pruned) >= 6
    differs = 0
    for name in pruned:
        kept = after[name] != 0
        assert (kept.sum(1) == before[name].shape[1] // 2).all() and torch.equal(after[name][kept], before[name][kept])
        magnitude = before[name].abs()
        differs += not torch.equal(kept, magnitude >= magnitude.kthvalue(before[name].shape[1] // 2 + 1, 1, keepdim=True).values)
        if how == "gradients":
            g = load_file(given / "gradients.safetensors")[name]
            score = (before[name].double() * g.double()).square()
            assert (score.masked_fill(~kept, torch.inf).amin(1) >= score.masked_fill(kept, -torch.inf).amax(1)).all()
    assert differs == len(pruned)


def test_a_step_by_gradients_without_data_is_refused(given, tmp_path, capsys):
    assert main([str(given / "model"), str(tmp_path / "out"), "--recipe", str(given / "fisher.json")]) == 1
    assert "at /calibration" in capsys.readouterr().err


def test_it_is_estimated_without_data(given, capsys):
    assert main([str(given / "model"), "--estimate", "--recipe", str(given / "fisher.json")]) == 0
    assert json.loads(capsys.readouterr().out)["actions"]["pruned"]["tensors"] >= 6


def test_data_that_are_not_there_are_a_usage_error(given, tmp_path):
    with pytest.raises(SystemExit) as e:
        main([str(given / "model"), str(tmp_path / "out"), "--preset", "w8a16", "--calibration", str(given / "nothing.txt")])
    assert e.value.code == 2


def test_what_is_pruned_is_trained(given, tmp_path):
    recipe = {"steps": [FISHER["steps"][0] | {"recover": {"steps": 4, "batch_size": 8}}]}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    report = run(given, tmp_path / "out", "--recipe", str(tmp_path / "recipe.json"), "--calibration", str(given / "ids.jsonl"), "--seed", "7", "--format", "safetensors")
    assert [told["steps_run"] for told in report["recovery"]] == [4] and report["quality"]["measured"]
