"""The search for a recipe, from end to end on tiny models: budgets of size and of quality are kept, ones that cannot be are answered with the nearest."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_models import VOCABULARY, build

from app.estimate import estimate
from app.job_spec import parse_job
from app.local import open_local
from app.recipe import parse_recipe
from worker.__main__ import main
from worker.reconstructing import Reconstruction
from worker.search import options
from worker.search.finding import WEIGHTS_ONLY

ID = "00000000-0000-0000-0000-000000000000"


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    """`bert/` and `llama/`, and samples for both."""
    root, rng = tmp_path_factory.mktemp("given"), np.random.default_rng(0)
    for name in ("bert", "llama"):
        build(name, root / name, tokenizer=False, num_hidden_layers=1)
    lines = [json.dumps({"input_ids": rng.integers(3, VOCABULARY, 12).tolist()}) for _ in range(40)]
    (root / "ids.jsonl").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="module", autouse=True)
def fewer():
    """A few of the options: all of them differ in nothing but how long they take."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(options, "UNIFORM", {2: ({"strategy": "channel"},), 4: ({"group_size": 8}, {"strategy": "channel"}), 8: ({"strategy": "channel"},)})
        patch.setattr(options, "WIDE", {5: ({"strategy": "channel"},)})
        patch.setattr(options, "NORMAL", {3: ({"group_size": 32},)})
        patch.setattr("app.steps.quantize.STEPS", 20)
        yield


def search(given: Path, out: Path, model: str, *more: str, code: int = 0) -> dict:
    how = () if "--recipe" in more else ("--preset", "auto")
    assert main([str(given / model), str(out), *how, *more]) == code
    return json.loads((out / "report.json").read_text())


def stored(report: dict) -> float:
    """Bits a weight of what was searched."""
    rows = [r for r in report["tensors"] if r["action"] == "quantized"]
    return 8 * sum(r["bytes_after"] for r in rows) / sum(np.prod(r["shape"]) for r in rows)


@pytest.fixture(scope="module")
def solved() -> list[str]:
    """The recipe of each stage of a network that was worked out for `sized`."""
    return []


@pytest.fixture(scope="module")
def sized(given, tmp_path_factory, solved) -> dict:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reconstruction, "_solve", lambda self, *stage, own=Reconstruction._solve: solved.append(self._recipe) or own(self, *stage))
        return search(given, tmp_path_factory.mktemp("out") / "bert", "bert", "--budget", '{"avg_bits": 6}', "--calibration", str(given / "ids.jsonl"))


def test_what_the_search_has_carried_out_is_not_worked_out_again(sized, solved):
    assert set(Counter(solved).values()) == {sized["reconstruction"]["stages"]}


def test_a_size_is_kept_to_and_what_was_done_is_told(sized):
    told = sized["search"]
    assert stored(sized) <= 6 and told["met"] and told["bounds"]["avg_bits"]["value"] == pytest.approx(stored(sized))
    assert told["judged_by"]["figure"] == "cosine" and told["measured"] >= told["groups"] and told["options"] > told["measured"]
    assert sized["quality"]["measured"] and sized["quality"]["cosine"] > 0.5
    front = told["front"]
    assert front and [p["bytes"] for p in front] == sorted(p["bytes"] for p in front) and [p["cosine"] for p in front] == sorted(p["cosine"] for p in front)
    assert [t["bytes"] for t in told["carried_out"] if "chosen" in t] == [sized["totals"]["bytes_after"]]


def test_of_what_keeps_to_the_size_the_best_stays_once_its_rounding_was_learned_too(sized):
    tried = sized["search"]["carried_out"]
    learned, (chosen,) = [t for t in tried if t["how"].endswith("rounding learned")], [t for t in tried if "chosen" in t]
    assert learned and chosen["quality"]["cosine"] == max(t["quality"]["cosine"] for t in tried if t["bytes"] <= chosen["bytes"])
    assert ("autoround" in {s.get("algorithm") for s in sized["recipe"]["steps"]}) == (chosen in learned)


def test_the_recipe_of_the_report_is_an_ordinary_one(sized):
    recipe = parse_recipe(sized["recipe"])
    assert not recipe.searches and {s.method for s in recipe.steps} <= {"prune", "quantize", "lossless"}
    named = [t for s in recipe.steps if s.method == "quantize" for t in s.targets]
    assert sorted(named) == sorted(r["name"] for r in sized["tensors"] if r["action"] == "quantized") and len(named) == sized["search"]["tensors"]


def test_fused_matrices_take_one_option(sized):
    width = {r["name"]: (r["num_bits"], r["strategy"], r["group_size"], r["type"]) for r in sized["tensors"] if r["action"] == "quantized"}
    assert len({width[f"encoder.layer.0.attention.self.{part}.weight"] for part in ("query", "key", "value")}) == 1


def test_what_it_found_gives_the_same_bytes_as_a_recipe_of_ones_own(given, sized, tmp_path):
    (tmp_path / "recipe.json").write_text(json.dumps(sized["recipe"]))
    assert main([str(given / "bert"), str(tmp_path / "out"), "--recipe", str(tmp_path / "recipe.json"), "--calibration", str(given / "ids.jsonl")]) == 0
    again = json.loads((tmp_path / "out" / "report.json").read_text())
    assert again["tensors"] == sized["tensors"] and again["quality"]["cosine"] == sized["quality"]["cosine"]


def met(report: dict, limit: float) -> int:
    """Bytes of a result that has the KL that was asked for."""
    (chosen,) = [t for t in report["search"]["carried_out"] if "chosen" in t]
    assert report["search"]["bounds"]["max_kl"]["value"] == chosen["quality"]["kl"] <= limit and chosen["bytes"] == report["totals"]["bytes_after"]
    return chosen["bytes"]


@pytest.mark.slow
def test_a_quality_is_met(given, tmp_path):
    report = search(given, tmp_path / "out", "llama", "--budget", "max_kl=0.3", "--calibration", str(given / "ids.jsonl"))
    assert met(report, 0.3) < report["totals"]["bytes_before"] * 0.6 and report["search"]["verified"] > 2


@pytest.mark.slow
def test_less_quality_takes_less(given, tmp_path):
    sizes = [met(search(given, tmp_path / str(limit), "llama", "--budget", f"max_kl={limit}", "--calibration", str(given / "ids.jsonl")), limit) for limit in (0.5, 0.1, 0.02)]
    assert sizes == sorted(sizes) and len(set(sizes)) == 3


@pytest.mark.slow
def test_what_rounding_by_gptq_makes_better_is_rounded_so(given, tmp_path, monkeypatch):
    """Codebooks are left out, so that scale factors are what there is."""
    monkeypatch.setattr("worker.search.table.Table._priced", lambda self, looks: [])
    monkeypatch.setattr(options, "_listed", lambda packed, gradients, listed=options._listed: listed(False, gradients))
    (tmp_path / "recipe.json").write_text('{"steps": [{"method": "auto", "rounding": "gptq"}]}')
    report = search(given, tmp_path / "out", "llama", "--recipe", str(tmp_path / "recipe.json"), "--budget", "avg_bits=6", "--calibration", str(given / "ids.jsonl"))
    tried = {t["quality"]["kl"]: t for t in report["search"]["carried_out"] if t["bytes"] <= report["totals"]["bytes_after"]}
    assert "chosen" in tried[min(tried)] and stored(report) <= 6
    algorithms = {s.get("algorithm") for s in report["recipe"]["steps"]}
    assert "gptq" in algorithms and "autoround" not in algorithms and report["quality"]["measured"]


def test_without_data_it_works_on_weights_and_says_so(given, tmp_path):
    report = search(given, tmp_path / "out", "llama", "--budget", "avg_bits=7")
    assert stored(report) <= 7 and WEIGHTS_ONLY in report["search"]["notes"] and report["search"]["judged_by"] == {"figure": "error of the weights"}
    assert all("mapping" not in s or s["mapping"] == "uniform" for s in report["recipe"]["steps"])


@pytest.mark.parametrize("budget", ["avg_bits=7", "ratio=1.5"])
def test_what_was_foreseen_of_it_holds(given, tmp_path, budget):
    report = search(given, tmp_path / "out", "llama", "--budget", budget)
    model, read = open_local(given / "llama")
    name, value = budget.split("=")
    said = estimate(model, parse_job({"input": ID, "preset": "auto", "budget": {name: float(value)}}), read)
    assert said["bytes_least"] <= report["totals"]["bytes_after"] <= said["bytes_most"] and said["bytes_after"] == pytest.approx(report["totals"]["bytes_after"], rel=0.1)


def test_an_error_of_the_weights_may_be_asked_for(given, tmp_path):
    report = search(given, tmp_path / "out", "bert", "--budget", "max_relative_error=0.1")
    worst = max(r["relative_error"] for r in report["tensors"] if r["action"] == "quantized")
    assert 0.02 < worst <= 0.1 and stored(report) < 8


@pytest.mark.slow
def test_compressed_tensors_get_scale_factors_alone(given, tmp_path):
    more = ("--format", "compressed-tensors", "--calibration", str(given / "ids.jsonl"))
    report = search(given, tmp_path / "out", "llama", "--budget", "ratio=1.2", *more)
    assert report["totals"]["ratio"] >= 1.2 and {s["mapping"] for s in report["recipe"]["steps"]} == {"uniform"} and report["quality"]["measured"]


@pytest.mark.parametrize(
    "budget, data",
    [
        ("avg_bits=1.5", False),
        ("max_relative_error=0.0001", False),
        pytest.param("max_bytes=900", True, marks=pytest.mark.slow),
        pytest.param("max_kl=1e-4 avg_bits=6", True, marks=pytest.mark.slow),
    ],
)
def test_the_nearest_that_can_be_met_is_told(given, tmp_path, capsys, budget, data):
    more = ("--calibration", str(given / "ids.jsonl")) if data else ()
    asked = [o for bound in budget.split() for o in ("--budget", bound)]
    report = search(given, tmp_path / "out", "llama", *asked, *more, code=1)
    name, limit = budget.split()[0].split("=")
    said = capsys.readouterr().err
    assert "[budget-not-met]" in said and f"/budget/{name}" in said
    assert report["search"]["met"] is False and report["search"]["nearest"][name] > float(limit)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"report.json"}
    if name in ("avg_bits", "max_bytes"):
        assert report["search"]["measured"] == 0 and len(report["search"]["carried_out"]) == 1
        nearest = report["search"]["nearest"][name]
        met = search(given, tmp_path / "met", "llama", "--budget", f"{name}={nearest}", *more)
        assert met["search"]["met"]


def test_gradients_of_ones_own_are_gone_by(given, tmp_path):
    g = torch.Generator().manual_seed(1)
    from safetensors.torch import load_file

    weights = load_file(given / "bert" / "model.safetensors")
    save_file({n: torch.randn(w.shape, generator=g) for n, w in weights.items() if w.ndim == 2}, tmp_path / "g.safetensors")
    report = search(given, tmp_path / "out", "bert", "--budget", "avg_bits=5", "--gradients", str(tmp_path / "g.safetensors"))
    assert report["search"]["judged_by"] == {"figure": "gradients"} and stored(report) <= 5 and "quality" not in report


def test_a_figure_that_the_model_does_not_have_is_refused(given, tmp_path, capsys):
    assert main([str(given / "llama"), str(tmp_path / "out"), "--preset", "auto", "--budget", "min_cosine=0.9", "--calibration", str(given / "ids.jsonl")]) == 1
    assert "/budget/min_cosine" in capsys.readouterr().err


def test_matrices_with_nan_are_left_alone(tmp_path):
    torch.manual_seed(0)
    broken = torch.randn(32, 32)
    broken[3, 3] = float("nan")
    save_file({"a.weight": torch.randn(64, 64), "b.weight": broken}, tmp_path / "m.safetensors")
    assert main([str(tmp_path / "m.safetensors"), str(tmp_path / "out"), "--preset", "auto", "--budget", "avg_bits=5"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {r["name"]: r["action"] for r in report["tensors"]} == {"a.weight": "quantized", "b.weight": "copied"}
    assert any("b.weight" in note for note in report["search"]["notes"])


def test_experts_of_one_tensor_are_searched_like_matrices(tmp_path):
    torch.manual_seed(0)
    shapes = {"m.experts.gate_up_proj": (3, 32, 48), "m.experts.down_proj": (3, 24, 32), "m.q_proj.weight": (32, 32)}
    save_file({n: torch.randn(s) for n, s in shapes.items()}, tmp_path / "m.safetensors")
    assert main([str(tmp_path / "m.safetensors"), str(tmp_path / "out"), "--preset", "auto", "--budget", "avg_bits=5"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert stored(report) <= 5 and all(r["action"] == "quantized" for r in report["tensors"])
    assert {r["name"]: r.get("experts", {}).get("count") for r in report["tensors"]} == {"m.experts.gate_up_proj": 3, "m.experts.down_proj": 3, "m.q_proj.weight": None}
