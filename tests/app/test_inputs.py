"""What is known of a job before it starts: its size, its memory, and what cannot be done."""

from __future__ import annotations

import json

import pytest

from app.models import Job

MATRIX = {"fc.weight": ("F32", [64, 96]), "fc.bias": ("F32", [64])}


def submitted(api, client, data: bytes, name: str = "m.safetensors", **spec) -> Job:
    artifact = client.post("/v1/artifacts", params={"name": name}, content=data).json()["id"]
    response = client.post("/v1/jobs", json={"input": artifact} | spec)
    assert response.status_code == 202, response.text
    with api.session() as s:
        return s.get(Job, response.json()["id"])


def test_a_job_knows_what_it_takes(api, alice, model):
    data = model(MATRIX)
    small, large = submitted(api, alice, data, preset="lossless"), submitted(api, alice, model({"fc.weight": ("F32", [4096, 1024])}), preset="w8a16")
    assert small.input_bytes == len(data) and 100 << 20 < small.memory < large.memory < 1 << 30


def test_a_file_without_a_suffix_is_a_model_too(api, alice, model):
    assert submitted(api, alice, model(MATRIX), name="weights", preset="prune-50").memory


def test_what_no_tensor_can_take_is_refused_at_once(alice, model, problem):
    artifact = alice.post("/v1/artifacts", params={"name": "m.safetensors"}, content=model(MATRIX)).json()["id"]
    steps = [{"method": "prune", "targets": ["*.bias"]}]
    problem(alice.post("/v1/jobs", json={"input": artifact, "recipe": {"steps": steps}}), 422, "no-tensor-matched", "/recipe/steps/0/targets")


@pytest.mark.parametrize(("length", "tensors", "times", "kind"), [(1, 5000, 41, "limit-entries"), (400, 2500, 31, "limit-header")])
def test_what_many_files_share_counts_for_each_of_them(alice, model, problem, length, tensors, times, kind):
    data = model({f"{i:05}" + "n" * length: ("U8", [0]) for i in range(tensors)})
    part = alice.post("/v1/artifacts", params={"name": "m.safetensors"}, content=data).json()["id"]
    files = [{"path": f"{i}.safetensors", "artifact": part} for i in range(times)]
    folder = alice.post("/v1/artifacts", json={"files": files}).json()["id"]
    problem(alice.post("/v1/jobs", json={"input": folder, "preset": "lossless"}), 422, kind, "/input")


@pytest.mark.parametrize("cls, gate, status", [("LlamaForCausalLM", "min_cosine", 422), ("BertModel", "max_kl", 422), ("BertModel", "min_cosine", 202), ("Unheard", "max_kl", 202)])
def test_a_gate_on_what_is_not_measured_of_such_a_model_is_refused_at_once(alice, model, problem, cls, gate, status):
    def upload(name: str, data: bytes, **more) -> str:
        return alice.post("/v1/artifacts", params={"name": name} | more, content=data).json()["id"]

    parts = {"model.safetensors": model(MATRIX), "config.json": json.dumps({"architectures": [cls]}).encode()}
    files = [{"path": name, "artifact": upload(name, data)} for name, data in parts.items()]
    folder = alice.post("/v1/artifacts", json={"files": files}).json()["id"]
    body = {"input": folder, "preset": "prune-50", "gates": {gate: 0.5}}
    response = alice.post("/v1/jobs", json=body | {"calibration": upload("texts.txt", b"one\ntwo\n", kind="calibration")})
    if status == 202:
        assert response.status_code == 202, response.text
    else:
        told = problem(response, 422, "invalid-job-spec", f"/gates/{gate}")["detail"]
        assert ("gates: max_kl" if gate == "min_cosine" else "gates: min_cosine") in told
