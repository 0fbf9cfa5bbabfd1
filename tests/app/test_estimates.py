"""`POST /v1/estimates`: from headers alone, from an artifact, and refused for what a job would be refused for."""

from __future__ import annotations

import json
import tarfile
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from homes import KINDS, own_home
from typer.testing import CliRunner

from app import meters, workers
from app.api import estimates
from app.cache import cache_key
from app.cli import app
from app.db import engine, now
from app.estimate import texter
from app.job_spec import parse_job
from app.models import Job, Worker
from app.outline import Outline, TensorSpec
from app.safetensors_header import parse_safetensors_header

TENSORS = {"fc.weight": ("F32", [64, 96]), "fc.bias": ("F32", [64]), "embed.weight": ("F32", [50, 96])}
CONFIG = {"model_type": "x", "hidden_size": 96}


@pytest.fixture(scope="module")
def data(model) -> bytes:
    return model(TENSORS)


@pytest.fixture(scope="module")
def artifact(alice, data) -> str:
    return alice.post("/v1/artifacts", params={"name": "m.safetensors"}, content=data).json()["id"]


def described(data: bytes, path: str = "model.safetensors") -> dict:
    length = int.from_bytes(data[:8], "little")
    return {"path": path, "size": len(data), "header": json.loads(data[8 : 8 + length])}


def ask(client, files: list[dict], **body):
    return client.post("/v1/estimates", params={"tensors": "true"}, json={"files": files} | (body or {"preset": "w8a16"}))


def test_headers_alone_are_enough(alice, data):
    files = [described(data), {"path": "config.json", "size": len(json.dumps(CONFIG))}, {"path": "tokenizer.json", "size": 1000}]
    r = ask(alice, files, preset="int8", config=CONFIG)
    said = r.json()
    assert r.status_code == 200 and said["exact"] and said["output_format"] == "compressed-tensors" and not said["cache_hit"], r.text
    assert {f["path"] for f in said["files"]} == {"model.safetensors", "config.json", "tokenizer.json"}
    assert said["actions"]["quantized"] == {"tensors": 1, "bytes_before": 4 * 64 * 96, "bytes_after": 64 * 96 + 4 * 64}
    assert said["loaders"] == ["transformers", "vLLM"] and any("embedding" in n for n in said["notes"])
    assert {t["name"]: t["action"] for t in said["tensors"]} == {"fc.weight": "quantized", "fc.bias": "copied", "embed.weight": "copied"}


def test_shards_need_no_index_text(alice, model):
    a, b = model({"a.weight": ("F32", [8, 8])}), model({"b.weight": ("F32", [8, 8])})
    files = [described(a, "model-1.safetensors"), described(b, "model-2.safetensors"), {"path": "model.safetensors.index.json", "size": 120}]
    said = ask(alice, files, preset="prune-50", output={"format": "safetensors"}).json()
    assert said["exact"] and [f["path"] for f in said["files"]] == ["model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json"]


def test_an_artifact_is_looked_into(alice, artifact):
    r = alice.post("/v1/estimates", json={"input": artifact, "preset": "lossless"})
    said = r.json()
    assert r.status_code == 200 and said["basis"] == "sample" and "tensors" not in said and said["seconds_basis"] == "default"
    assert said["bytes_least"] <= said["bytes_after"] <= said["bytes_most"] and said["ratio"] > 5  # the tensors are one byte over and over


@pytest.mark.parametrize(
    "body",
    [
        {"preset": "w5"},
        {"preset": "lossless", "output": {"format": "safetensors"}},
        {"preset": "w4a16", "output": {"format": "compressed-tensors"}},
        {"preset": "lossless", "seed": -1},
        {"preset": "lossless", "device": "cuda"},
        {"recipe": {"steps": [{"method": "prune", "targets": ["nope.*"]}]}},
        {"recipe": {"steps": [{"method": "prune", "targets": ["*.bias"]}]}},
        {"recipe": {"steps": [{"method": "prune", "targets": ["re:("]}]}},
    ],
)
def test_what_a_job_is_refused_for_is_refused_here(alice, artifact, data, body):
    job, of_any = alice.post("/v1/jobs", json={"input": artifact} | body), {"request_id": None}
    for said in (alice.post("/v1/estimates", json={"input": artifact} | body), ask(alice, [described(data)], **body)):
        assert said.status_code == job.status_code == 422 and said.json() | of_any == job.json() | of_any


def test_headers_that_do_not_hold(alice, data, problem):
    good = described(data)
    problem(ask(alice, [good | {"size": 100}]), 422, "invalid-job-spec", "/files/0/size")
    for change in ({"dtype": "F99"}, {"shape": [64, 95]}, {"data_offsets": [0, 1]}, {"data_offsets": "x"}, {"more": 1}):
        header = good["header"] | {"fc.weight": good["header"]["fc.weight"] | change}
        problem(ask(alice, [good | {"header": header}]), 422, "invalid-safetensors", "/files/0/header")
    outside = {"../x": good["header"]["fc.bias"] | {"data_offsets": [0, 256]}}
    problem(ask(alice, [good | {"header": outside, "size": 400}]), 422, "bad-tensor-name", "/files/0/header")
    problem(ask(alice, [good | {"path": "../m.safetensors"}]), 422, "invalid-path", "/files/0/path")
    problem(ask(alice, [{"path": "m.pt", "size": 10}]), 422, "not-estimable", "/files")
    problem(ask(alice, []), 422, "invalid-job-spec", "/files")
    problem(ask(alice, [good | {"header": 3}]), 422, "invalid-job-spec", "/files/0/header")
    problem(ask(alice, [good], input=str(uuid.uuid4()), preset="lossless"), 422, "invalid-job-spec", "/files")
    problem(alice.post("/v1/estimates", content=b"[" * 5000, headers={"Content-Type": "application/json"}), 400, "malformed-json")
    problem(alice.post("/v1/estimates", json=[]), 422, "invalid-job-spec")


def test_whose_it_is(alice, bob, nobody, artifact, problem):
    problem(bob.post("/v1/estimates", json={"input": artifact, "preset": "lossless"}), 404, "not-found")
    assert nobody.post("/v1/estimates", json={"input": artifact, "preset": "lossless"}).status_code == 401


def test_the_command_needs_no_service(data, tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(data)
    run = CliRunner().invoke(app, ["estimate", str(path), "--preset", "w8a16", "--format", "safetensors", "--json"])
    said = json.loads(run.output)
    header = parse_safetensors_header(data, len(data))
    assert run.exit_code == 0 and said["exact"] and said["bytes_after"] >= len(data) - header.data_start
    within = CliRunner().invoke(app, ["estimate", str(path), "--preset", "auto", "--budget", "ratio=3", "--json"])
    assert within.exit_code == 0 and json.loads(within.stdout)["ratio"] > 3
    table = CliRunner().invoke(app, ["estimate", str(path), "--preset", "lossless"])
    assert table.exit_code == 0 and "packed" in table.output
    assert said["seconds_basis"] == "default"


def test_the_command_has_other_formats_parsed(data, tmp_path):
    (tmp_path / "m.safetensors").write_bytes(data)
    with tarfile.open(tmp_path / "m.tar.gz", "w:gz") as t:
        t.add(tmp_path / "m.safetensors", "m.safetensors")
    run = CliRunner().invoke(app, ["estimate", str(tmp_path / "m.tar.gz"), "--preset", "w8a16", "--format", "safetensors", "--json"])
    plain = CliRunner().invoke(app, ["estimate", str(tmp_path / "m.safetensors"), "--preset", "w8a16", "--format", "safetensors", "--json"])
    assert run.exit_code == 0 and json.loads(run.output) == json.loads(plain.output)
    (tmp_path / "m.pt").write_bytes(b"x")
    assert CliRunner().invoke(app, ["estimate", str(tmp_path / "m.pt"), "--preset", "lossless"]).exit_code == 1


def test_rates_that_workers_have_measured(api, alice, nobody, data, tmp_path, monkeypatch):
    with api.session() as s:
        meters.add(s, "work", count=5000, total=10.0, method="prune+lossless", device="cpu")
        meters.add(s, "work", count=9000, total=10.0, method="prune+lossless", device="cuda:A")
        s.commit()
    recipe = {"steps": [{"method": "prune"}, {"method": "lossless"}]}
    assert alice.get("/v1/estimates/rates").json()["bytes_per_second"]["prune+lossless"] == 500
    assert nobody.get("/v1/estimates/rates").status_code == 401
    said = ask(alice, [described(data)], recipe=recipe).json()
    (tmp_path / "m.safetensors").write_bytes(data)
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    command = ["estimate", str(tmp_path / "m.safetensors"), "--recipe", str(tmp_path / "recipe.json"), "--url", api.url, "--json"]
    for key, basis in ((api.keys["alice"], "measured"), ("wrong", "default")):
        monkeypatch.setenv("MODELPRESS_API_KEY", key)
        told = json.loads(CliRunner().invoke(app, command).output)
        assert told["seconds_basis"] == basis and (told["seconds"] == said["seconds"]) == (basis == "measured")


def test_several_at_once_all_have_their_answer(alice, data):
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask(alice, [described(data)], preset="lossless"), range(8)))
    assert {(r.status_code, r.json()["bytes_after"]) for r in answers} == {(200, answers[0].json()["bytes_after"])}


def test_what_cannot_be_told(alice, data, problem):
    problem(ask(alice, [described(data)], recipe={"steps": [{"method": "restore"}]}), 422, "invalid-job-spec", "/recipe")
    packed = described(data)
    packed["header"]["__metadata__"] = {"format": "modelpress.packed"}
    problem(ask(alice, [packed | {"size": packed["size"] + 100}]), 422, "not-estimable", "/files")
    problem(ask(alice, [packed | {"size": packed["size"] + 100}, {"path": "README.md", "size": 10}]), 422, "unsupported-format")


def test_the_device_that_would_compute_it_is_the_one_asked_about(api, alice, artifact):
    recipe = {"steps": [{"method": "prune", "sparsity": 0.25}]}
    body = {"input": artifact, "recipe": recipe}
    spec = parse_job(body, False).model_dump(mode="json", exclude={"webhook"})
    key = cache_key("alice", alice.get(f"/v1/artifacts/{artifact}").json()["digest"], spec, "cuda")
    with api.session() as s:
        for name, count in (("A", 4000), ("B", 2000)):
            workers.register(s, Worker(id=name, queues=["compress.gpu"], device=f"cuda {name}", memory=1, threads=1, jail={"holds": True}, version="0", seen_at=now()))
            meters.add(s, "work", count=count, total=1000.0, method="prune", device=f"cuda {name}")
        s.add(Job(owner="alice", spec=spec, state="succeeded", cache_key=key, input_id=artifact, output_id=artifact, finished_at=now()))
        s.commit()
    on_gpu = alice.post("/v1/estimates", json=body).json()
    with api.session() as s, s.begin():
        workers.leave(s, "A")
        workers.leave(s, "B")
    on_cpu = alice.post("/v1/estimates", json=body).json()
    assert (on_gpu["cache_hit"], on_gpu["seconds_basis"]) == (True, "measured") and on_gpu["seconds"] > on_gpu["bytes_before"] / 2  # the slower one's
    assert (on_cpu["cache_hit"], on_cpu["seconds_basis"]) == (False, "default")


@pytest.mark.parametrize("kind", KINDS)
def test_no_connection_is_held_while_it_computes(tmp_path, monkeypatch, data, kind):
    held, told = [], estimates.estimate
    monkeypatch.setattr(estimates, "estimate", lambda *given: held.append(engine().pool.checkedout()) or told(*given))
    with own_home(tmp_path, kind):
        assert estimates._estimate({"files": [described(data)], "preset": "w8a16"}, "alice", None)["bytes_after"]
    assert held == [0]


def test_only_the_index_that_is_read_is_made(data, monkeypatch):
    made = []

    def weight_map(path, headers, real=estimates._weight_map):
        made.append(path)
        return real(path, headers)

    monkeypatch.setattr(estimates, "_weight_map", weight_map)
    files = [described(data, "model-1.safetensors"), *({"path": f"{i}model.safetensors.index.json", "size": 9} for i in range(99))]
    estimates._described({"preset": "w8a16", "config": CONFIG, "files": [*files, {"path": "config.json", "size": 9}]})
    assert made == []
    model, _ = estimates._described({"preset": "prune-50", "files": [*files, {"path": "model.safetensors.index.json", "size": 9}]})
    assert made == ["model.safetensors.index.json"] and list(model.tensors) == list(TENSORS)


@pytest.mark.parametrize("size", [10, 1 << 20])
def test_text_is_read_up_to_a_bound(size):
    """Of many small files as well as of many large ones; each tensor is looked at once, not for each file."""
    files = {f"{i}.safetensors": size for i in range(5000)}
    tensors = {path: TensorSpec(path, "U8", (4,), 4, path) for path in files}
    reads: list[tuple[str, int, int]] = []

    def read(path: str, begin: int, end: int) -> bytes:
        reads.append((path, begin, end))
        return bytes(end - begin)

    text = texter(Outline(files, tuple(files), tensors, dict.fromkeys(tensors, 3)), read)
    bodies = [text(path) for path in files]
    assert len(bodies[0]) == size - 4 and bodies[-1] is None and [(b, e) for p, b, e in reads if p == "0.safetensors"] == [(0, 3), (7, size)]
    assert sum(end - begin for _, begin, end in reads) < 34 << 20 and len(reads) <= 2048


def test_time_in_which_the_model_runs_is_in_the_seconds(alice, data):
    def seconds(**recover) -> float:
        steps = [{"method": "prune"} | ({"recover": {"steps": 1_000_000, "batch_size": 100} | recover} if recover else {})]
        return ask(alice, [described(data)], recipe={"steps": steps}).json()["seconds"]

    plain, trained, longer = seconds(), seconds(loss="distill"), seconds(batch_size=1000)
    assert trained > plain + 10 and longer - plain == pytest.approx(10 * (trained - plain), rel=0.05)
