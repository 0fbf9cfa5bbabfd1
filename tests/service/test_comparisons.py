"""Comparisons by a real service: the table over HTTP and on the command line, with figures that hold against the results."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest
import tiny_models
import torch
import warm
from safetensors.torch import save_file

from app.client import AsyncClient, Client


@pytest.fixture
def model(tmp_path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "model.safetensors"
    save_file({"a.weight": torch.randn(256, 512), "b.weight": torch.randn(64, 256), "b.bias": torch.randn(64)}, path)
    return path


@pytest.fixture
def key(service) -> str:
    return (service.home / "api-key").read_text().strip()


def test_one_table_of_what_came_of_each(service, key, model):
    recipes = ["lossless", {"name": "four bits", "recipe": {"steps": [{"method": "quantize", "num_bits": 4}]}, "gates": {"max_relative_error": 1e-3}}, "prune-50"]
    with Client(service.url, key) as client:
        source = client.upload(model)
        made = client.compare(source["id"], recipes)
        seen = []
        found = client.wait_comparison(made["id"], seen.append)
        assert found == client.comparison(made["id"]) and seen[-1]["state"] == "ended"
        again = client.wait_comparison(client.compare(source["id"], ["lossless"])["id"])["rows"][0]
        jobs = {j["id"]: j for j in client.jobs()}
        assert all(sum(s["state"] in ("running",) for s in told["rows"]) <= 1 for told in seen)
        for row in (found["rows"][0], found["rows"][2]):
            result, report = client.artifact(row["output"]), client.report(row["output"])
            assert row["state"] == "succeeded" and row["bytes_after"] == result["size"] and row["bytes_before"] == source["size"]
            assert row["ratio"] == report["totals"]["ratio"] and row["relative_error"] == report["totals"]["relative_error"]
            assert row["restore_seconds"] == row["seconds"]["verify"] and {"fetch", "compress", "store", "sign"} <= row["seconds"].keys()
            assert row["total_seconds"] == pytest.approx(sum(row["seconds"].values()), abs=1e-3) and 50 << 20 < row["peak_memory"] < 8 << 30
    lossless, four, half = found["rows"]
    assert lossless["relative_error"] == 0 and half["relative_error"] > 0.1
    assert (four["state"], four["error"]["type"]) == ("failed", "gate-failed") and four["relative_error"] > 0.01 and four["output"] is None and four["report"]
    starts = [jobs[row["job"]]["started_at"] for row in found["rows"]]
    assert starts == sorted(starts)
    assert again["cached"] and again["bytes_after"] == lossless["bytes_after"] and again["peak_memory"] == lossless["peak_memory"]
    assert again["seconds"]["compress"] == lossless["seconds"]["compress"]


def test_the_async_client_compares_too(service, key, model):
    async def run() -> dict:
        async with AsyncClient(service.url, key) as client:
            source = await client.upload(model)
            made = await client.compare(source["id"], ["int8"], seed=3)
            return await client.wait_comparison(made["id"])

    assert asyncio.run(run())["rows"][0]["state"] == "succeeded"


def test_on_the_command_line(service, model, tmp_path):
    recipe = tmp_path / "ours.json"
    recipe.write_text(json.dumps({"steps": [{"method": "prune", "sparsity": 0.75}]}))

    def run(*more: str):
        variables = os.environ | {"MODELPRESS_URL": service.url, "MODELPRESS_HOME": str(service.home), "COLUMNS": "200"}
        return warm.run("app.cli", "compare", str(model), *more, env=variables, timeout=120)

    two = ("--preset", "lossless", "--recipe", str(recipe))
    told = run(*two, "--json", "--budget", "avg_bits=6")
    rows = json.loads(told.stdout)["rows"]
    assert told.returncode == 0 and [row["name"] for row in rows] == ["lossless", "ours", "auto avg_bits=6"] and {row["state"] for row in rows} == {"succeeded"}
    shown = run(*two)
    assert shown.returncode == 0 and "ours" in shown.stdout and f"{rows[1]['bytes_after']:,}" in shown.stdout and "restore s" in shown.stdout
    missed = run(*two, "--gate", "max_bytes=1")
    assert missed.returncode == 1 and missed.stdout.count("failed: gate-failed") == 2
    assert run().returncode == 2


def test_what_calibration_finds_is_found_once(service, key, tmp_path):
    """Two recipes that go by gradients, one of which makes the model narrower: the second takes what the first has found, and the folder loads."""
    tiny_models.build("bert", tmp_path / "bert")
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(tiny_models.texts(60)))
    half = {"steps": [{"method": "prune", "saliency": "fisher", "sparsity": 0.5}]}
    narrow = {"name": "narrow", "recipe": {"steps": [{"method": "prune", "mask_structure": "ffn-width", "saliency": "taylor", "norm": "l1"}]}}
    with Client(service.url, key) as client:
        source, data = client.upload(tmp_path / "bert"), client.upload(lines, kind="calibration")
        found = client.wait_comparison(client.compare(source["id"], [half, narrow], calibration=data["id"])["id"])
        first, second = found["rows"]
        assert [row["state"] for row in found["rows"]] == ["succeeded", "succeeded"], found
        assert "calibrate" in first["seconds"] and "calibrate" not in second["seconds"]
        assert 0 < second["quality"]["cosine"] < 1 and 0 < first["quality"]["cosine"] < 1 and second["quality"]["samples"] > 0
        report = client.report(second["output"])
        assert second["output_format"] == "safetensors" and report["load_proof"]["transformers"]["loaded"]
        assert report["width"]["config"] == {"intermediate_size": {"before": 24, "after": 12}}
        client.download(second["output"], tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["intermediate_size"] == 12
