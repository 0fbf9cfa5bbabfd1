"""Quality by a real service: measured on the reloaded result, judged by gates, and the whole report kept where one is missed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small BERT as transformers saves it."""
    from transformers import BertConfig, BertModel

    path = tmp_path_factory.mktemp("model")
    shape = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 16}
    BertModel(BertConfig(initializer_range=0.3, **shape)).save_pretrained(path)
    return path


def upload(http, data: bytes, name: str, **kind: str) -> str:
    answer = http.post("/v1/artifacts", params={"name": name} | kind, content=data)
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def test_a_missed_gate_ends_failed_with_the_whole_report(service, folder):
    rng = np.random.default_rng(0)
    lines = [json.dumps({"input_ids": rng.integers(1, 60, 9).tolist()}) for _ in range(30)]
    with service.http() as http:
        files = [{"path": p.name, "artifact": upload(http, p.read_bytes(), p.name)} for p in folder.iterdir()]
        model = http.post("/v1/artifacts", json={"files": files}).json()["id"]
        calibration = upload(http, "\n".join(lines).encode(), "ids.jsonl", kind="calibration")

        def run(**gates: float) -> dict:
            steps = [{"method": "quantize", "num_bits": 3, "ignore": ["*pooler*"]}]
            return service.finish(service.submit(model, recipe={"steps": steps}, output={"format": "packed"}, calibration=calibration, gates=gates)["id"])

        def report(job: dict) -> dict:
            return http.get(f"/v1/jobs/{job['id']}/report").json()

        missed = run(min_cosine=0.9999)
        assert (missed["state"], missed["error"]["type"], missed["error"]["pointer"]) == ("failed", "gate-failed", "/gates/min_cosine"), missed
        found = report(missed)
        cosine = found["quality"]["cosine"]
        assert 0.1 < found["quality"]["cosine_min"] <= cosine < 0.9999 and (found["quality"]["task"], found["quality"]["samples"]) == ("encoder", 3)
        assert found["gates"]["min_cosine"] == {"limit": 0.9999, "value": cosine, "tensor": None, "passed": False}
        assert missed["error"]["gates"] == found["gates"] and len(found["tensors"]) > 10 and found["totals"]["ratio"] > 1
        assert "<h2>quality</h2>" in http.get(f"/v1/jobs/{missed['id']}/report", headers={"Accept": "text/html"}).text
        held = run(min_cosine=cosine - 1e-6)
        assert held["state"] == "succeeded" and report(held)["quality"]["cosine"] == pytest.approx(cosine)
        anew = run(min_cosine=cosine + 1e-3)
        assert anew["cached"] and anew["state"] == "failed" and report(anew)["quality"] == report(held)["quality"]
        assert report(anew)["gates"]["min_cosine"]["passed"] is False
