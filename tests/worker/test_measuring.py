"""Quality of whole results: small models of transformers, compressed, reloaded from every format and run beside the original."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from app.errors import GateFailed, InputRefused, InvalidJobSpec
from worker import measuring, pipeline
from worker.samples import split

INT3 = [{"method": "quantize", "num_bits": 3, "group_size": 16}]
PRUNE = [{"method": "prune", "sparsity": 0.6}]
COUNT = 40


def save(model, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def bert(folder: Path, cls: str = "BertModel", **options) -> Path:
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, max_position_embeddings=24, initializer_range=0.3, **options)
    return save(getattr(transformers, cls)(config), folder)


def llama(folder: Path) -> Path:
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, max_position_embeddings=24, pad_token_id=0, initializer_range=0.3)
    return save(transformers.LlamaForCausalLM(config), folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    lone = root / "lone"
    lone.mkdir()
    save_file({"a.weight": torch.randn(32, 32)}, lone / "model.safetensors")
    return {
        "encoder": bert(root / "encoder"), "causal-lm": llama(root / "lm"), "lone": lone,
        "classifier": bert(root / "classifier", "BertForSequenceClassification", num_labels=3),
    }  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Path]:
    """`calibration`: lines of token ids, of many lengths; `labels`: a class for each."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("data")
    lines = [json.dumps({"input_ids": rng.integers(1, 97, rng.integers(2, 24)).tolist()}) for _ in range(COUNT)]
    texts = {"calibration": ("ids.jsonl", lines), "labels": ("labels.txt", [str(n) for n in rng.integers(0, 3, COUNT)]), "few": ("ids.jsonl", lines[:3])}
    for role, (name, text) in texts.items():
        (root / role).mkdir()
        (root / role / name).write_text("\n".join(text) + "\n")
    return {role: root / role for role in texts}


def work(model: Path, out: Path, data: dict[str, Path], steps: list, output: str = "packed", gates: dict | None = None, labels: bool = False, emit=lambda event: None) -> dict:
    """Compressed and measured, as two children do it; the report."""
    beside = {"calibration": str(data["calibration"]), "original": str(model)} | ({"labels": str(data["labels"])} if labels else {})
    spec = {"recipe": {"steps": steps}, "output": {"format": output}, "gates": gates or {}, "sanitize": "strip", "calibration": "id", "beside": beside}
    pipeline.run(model, out / "made", spec, lambda event: None)
    (out / "measured").mkdir()
    measuring.run(out / "made", out / "measured", spec, emit)
    return json.loads((out / "measured" / "report.json").read_text())


def test_an_encoder(models, data, tmp_path):
    from transformers import BertModel

    quality = work(models["encoder"], tmp_path, data, INT3)["quality"]
    back = tmp_path / "back"
    pipeline.run(tmp_path / "made" / "files", back, {"recipe": {"steps": [{"method": "restore"}]}, "output": {"format": "original"}, "sanitize": "report"}, lambda e: None)
    before, after = (BertModel.from_pretrained(p, add_pooling_layer=False).eval() for p in (models["encoder"], back / "files"))
    ids = [torch.tensor([json.loads(line)["input_ids"]]) for line in (data["calibration"] / "ids.jsonl").read_text().splitlines()]
    cosines = []
    with torch.no_grad():
        for i in split(COUNT, "test"):
            x, y = (m(input_ids=ids[i], attention_mask=torch.ones_like(ids[i])).last_hidden_state.mean(1) for m in (before, after))
            cosines.append(torch.nn.functional.cosine_similarity(x, y).item())
    assert quality["cosine"] == pytest.approx(sum(cosines) / len(cosines), abs=1e-6) and quality["cosine_min"] == pytest.approx(min(cosines), abs=1e-6)
    assert 0.2 < quality["cosine"] < 0.9999 and (quality["task"], quality["samples"], quality["split"]) == ("encoder", 4, "test")
    assert quality["splits"] == {"fit": 32, "stop": 4, "test": 4} and quality["seconds"] > 0
    assert "kl" not in quality and "accuracy" not in quality


@pytest.mark.parametrize("steps, output", [(INT3, "packed"), (INT3, "safetensors"), (INT3, "compressed-tensors"), (PRUNE, "packed"), (PRUNE, "safetensors")])
def test_every_format_is_reloaded(models, data, tmp_path, steps, output):
    quality = work(models["causal-lm"], tmp_path, data, steps, output)["quality"]
    assert 0 < quality["kl"] < quality["kl_p99"] <= quality["kl_max"] and 0 < quality["top1_agreement"] < 1
    assert quality["perplexity_before"] > 1 and quality["perplexity_after"] != quality["perplexity_before"]
    twin = work(models["causal-lm"], tmp_path / "twin", data, steps, "safetensors")["quality"]
    if output == "packed":  # decodes to the same values, and so says the same
        assert {k: v for k, v in twin.items() if "seconds" not in k} == {k: v for k, v in quality.items() if "seconds" not in k}


def test_without_loss_nothing_differs(models, data, tmp_path):
    quality = work(models["causal-lm"], tmp_path, data, [{"method": "lossless"}], gates={"max_kl": 0})["quality"]
    assert (quality["kl_max"], quality["top1_agreement"]) == (0, 1) and quality["perplexity_after"] == quality["perplexity_before"]


def test_what_is_measured_is_the_result_and_not_what_was_meant(models, data, tmp_path):
    """A weight is changed in the finished file, and the quality tells."""
    beside = {"calibration": str(data["calibration"]), "original": str(models["encoder"])}
    spec = {"recipe": {"steps": [{"method": "prune", "sparsity": 0}]}, "output": {"format": "safetensors"}, "gates": {}, "sanitize": "strip", "calibration": "id", "beside": beside}
    pipeline.run(models["encoder"], tmp_path / "made", spec, lambda e: None)
    cosines = []
    for i in range(2):
        (tmp_path / str(i)).mkdir()
        measuring.run(tmp_path / "made", tmp_path / str(i), spec, lambda e: None)
        cosines.append(json.loads((tmp_path / str(i) / "report.json").read_text())["quality"]["cosine"])
        path = tmp_path / "made" / "files" / "model.safetensors"
        tensors = load_file(path)
        tensors["encoder.layer.0.output.dense.weight"] *= -1
        save_file(tensors, path, {"format": "pt"})
    assert cosines[0] == pytest.approx(1, abs=1e-6) and cosines[1] < 0.999


def test_a_classifier_with_labels(models, data, tmp_path):
    report = work(models["classifier"], tmp_path, data, PRUNE, labels=True, gates={"min_accuracy": 0.0, "max_bytes": 1 << 30})
    assert {"accuracy", "accuracy_before", "kl", "top1_agreement", "relative_output_error"} <= report["quality"].keys()
    assert report["quality"]["accuracy"] * 4 == int(report["quality"]["accuracy"] * 4)
    assert report["gates"]["min_accuracy"]["value"] == report["quality"]["accuracy"] and report["gates"]["max_bytes"]["passed"]


def test_a_missed_gate_leaves_the_whole_report(models, data, tmp_path):
    with pytest.raises(GateFailed, match="min_cosine is 0.") as e:
        work(models["encoder"], tmp_path, data, INT3, gates={"min_cosine": 0.99999, "max_bytes": 1 << 30})
    report = json.loads((tmp_path / "measured" / "report.json").read_text())
    assert e.value.pointer == "/gates/min_cosine" and report["quality"]["cosine"] == report["gates"]["min_cosine"]["value"] and report["tensors"]
    assert not (tmp_path / "measured" / "scratch").exists()


def test_a_gate_that_the_task_has_no_figure_for(models, data, tmp_path):
    with pytest.raises(InvalidJobSpec, match=r"cosine, which is not measured of causal-lm models; measured are kl, .*gates: max_kl"):
        work(models["causal-lm"], tmp_path, data, INT3, gates={"min_cosine": 0.5})


def test_a_model_that_does_not_run_is_told_and_fails_gates_on_outputs(models, data, tmp_path):
    report = work(models["lone"], tmp_path / "a", data, PRUNE, gates={"max_bytes": 1 << 30})
    assert report["quality"]["measured"] is False and "config.json" in report["quality"]["reason"] and report["gates"]["max_bytes"]["passed"]
    with pytest.raises(GateFailed, match=r"min_cosine cannot be judged: .*config\.json"):
        work(models["lone"], tmp_path / "b", data, PRUNE, gates={"min_cosine": 0.1})


def test_a_worker_without_transformers_says_so(models, data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    quality = work(models["encoder"], tmp_path, data, PRUNE)["quality"]
    assert quality["measured"] is False and "transformers is not installed" in quality["reason"]


@pytest.mark.parametrize("how", ["too-few-samples", "calibration-mismatch"])
def test_data_that_do_not_fit(models, data, tmp_path, how):
    given = data["few"]
    if how == "calibration-mismatch":
        given = tmp_path / "calibration"
        given.mkdir()
        (given / "ids.jsonl").write_text('{"input_ids": [1, 2, 97]}\n' * 10)
    with pytest.raises(InputRefused) as e:
        work(models["causal-lm"], tmp_path, data | {"calibration": given}, PRUNE)
    assert e.value.type == how


def test_progress_goes_up_to_the_end(models, data, tmp_path, monkeypatch):
    monkeypatch.setattr("worker.progress._INTERVAL", 0.0)
    monkeypatch.setattr(measuring, "_SAMPLES", 1)
    told = []
    work(models["encoder"], tmp_path, data, PRUNE, emit=told.append)
    fractions = [e["fraction"] for e in told]
    assert fractions == sorted(fractions) and fractions[-1] == pytest.approx(1, abs=0.01) and {e["stage"] for e in told} == {"measure"} and len(set(fractions)) >= 4


def test_batches_of_a_language_model_stay_small(models, data):
    from worker.samples import Data

    checkpoint = type("Opened", (), {"config": {"vocab_size": 1 << 17}})
    long = Data(tokens=[np.zeros(n, np.int64) for n in (3, 200, 500)])
    runs = type("Runs", (), {"task": "causal-lm"})
    assert measuring.batch_size(long, runs, checkpoint) == 1
    assert measuring.batch_size(long, type("Runs", (), {"task": "seq2seq"}), checkpoint) == 1
    checkpoint.config = {"vocab_size": 100}
    assert measuring.batch_size(long, runs, checkpoint) == 32
    runs.task = "encoder"
    assert measuring.batch_size(long, runs, checkpoint) == 32
