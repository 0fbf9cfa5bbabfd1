"""The client and the command line against a real service."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from pathlib import Path

import pytest
import torch
import warm
from safetensors.torch import save_file

from app.client import AsyncClient, Client
from app.errors import GateFailed, NotFound, NoTensorMatched
from app.verify import verify_folder


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "model.safetensors"
    save_file({"a.weight": torch.randn(64, 128), "b.weight": torch.randn(32, 64).bfloat16(), "b.bias": torch.randn(32)}, path)
    return path


@pytest.fixture
def client(service):
    with Client(service.url, (service.home / "api-key").read_text().strip()) as c:
        yield c


@pytest.fixture
def modelpress(service, tmp_path):
    def run(*args):
        variables = os.environ | {"MODELPRESS_URL": service.url, "MODELPRESS_HOME": str(service.home), "COLUMNS": "200"}
        return warm.run("app.cli", *map(str, args), env=variables, timeout=120)

    return run


def test_what_the_service_keeps_is_its_users_alone(service):
    assert not any(service.home.stat().st_mode & 0o077 or p.stat().st_mode & 0o077 for p in service.home.glob("modelpress.db*"))
    for part in ("sign", "control", "webhooks", "worker", "api"):
        assert "Umask:\t0077" in Path(f"/proc/{service.pid(part)}/status").read_text()


def test_a_result_is_signed_accounted_for_and_restorable(client, model, tmp_path):
    seen, out = [], tmp_path / "out"
    source = client.upload(model)
    job = client.wait(client.submit(source["id"], preset="lossless")["id"], seen.append)
    assert seen[-1]["state"] == "succeeded"
    artifact = client.download(job["output"], out)
    done = verify_folder(out, client.public_keys())
    assert done.files == {f["path"]: f["sha256"] for f in artifact["files"]} and len(done.checked) == 5
    statement = json.loads(base64.b64decode(json.loads((out / "provenance.json").read_text())["payload"]))
    inputs = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert inputs[0]["digest"]["sha256"] == source["digest"] and inputs[1]["name"] == "input/model.safetensors"
    back = client.wait(client.submit(job["output"], recipe={"steps": [{"method": "restore"}]})["id"])
    client.download(back["output"], tmp_path / "back")
    assert (tmp_path / "back/model.safetensors").read_bytes() == model.read_bytes()


def test_a_repeated_job_has_the_same_bytes_and_a_signature_of_its_own(client, model, tmp_path):
    source = client.upload(model)
    first, second = (client.wait(client.submit(source["id"], preset="prune-50", output={"format": "packed"})["id"]) for _ in range(2))
    assert first["output"] != second["output"]
    a, b = (client.download(j["output"], tmp_path / j["id"]) for j in (first, second))
    assert a["digest"] == b["digest"] and verify_folder(tmp_path / second["id"], client.public_keys())


def test_refusals_arrive_as_the_errors_they_are(client, model):
    source = client.upload(model)
    with pytest.raises(GateFailed, match="max_bytes"):
        client.wait(client.submit(source["id"], preset="lossless", gates={"max_bytes": 1})["id"])
    with pytest.raises(NoTensorMatched):
        client.wait(client.submit(source["id"], recipe={"steps": [{"method": "prune", "targets": ["nothing"]}]})["id"])
    with pytest.raises(NotFound):
        client.job("00000000-0000-4000-8000-000000000000")


def test_the_async_client_runs_a_job(service, model, tmp_path):
    async def flow():
        async with AsyncClient(service.url, (service.home / "api-key").read_text().strip()) as c:
            source = await c.upload(model)
            job = await c.wait((await c.submit(source["id"], preset="lossless"))["id"])
            await c.download(job["output"], tmp_path / "out")
            return await c.public_keys()

    assert verify_folder(tmp_path / "out", asyncio.run(flow()))


def test_compress_a_folder_verify_restore(modelpress, model, tmp_path):
    folder = tmp_path / "hf"
    (folder / "sub").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(model.read_bytes())
    (folder / "sub/notes.txt").write_text("notes")
    (folder / ".gitattributes").write_text("*.bin filter=lfs\n")
    done = modelpress("compress", folder, "--preset", "lossless", "-o", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["job"]["state"] == "succeeded" and document["artifact"]["format"] == "packed"
    assert modelpress("verify", tmp_path / "out").returncode == 0
    done = modelpress("restore", tmp_path / "out", "-o", tmp_path / "again")
    assert done.returncode == 0, done.stderr
    for path in ("model.safetensors", "sub/notes.txt", ".gitattributes"):
        assert (tmp_path / "again" / path).read_bytes() == (folder / path).read_bytes()
    listed = json.loads(modelpress("jobs", "--json").stdout)
    assert document["job"]["id"] in [j["id"] for j in listed]
    assert json.loads(modelpress("jobs", "show", document["job"]["id"]).stdout)["state"] == "succeeded"
    done = modelpress("jobs", "cancel", document["job"]["id"])
    assert done.returncode == 1 and "already-finished" in done.stderr


def test_a_refusal_is_one_line_with_a_pointer(modelpress, model, tmp_path):
    done = modelpress("compress", model, "--preset", "w4a16", "--format", "compressed-tensors", "-o", tmp_path / "out")
    assert done.returncode == 1 and done.stderr.splitlines()[-1].endswith("(at /output/format) [invalid-job-spec]"), done.stderr
    done = modelpress("keys", "--pem")
    assert done.returncode == 0 and done.stdout.startswith("-----BEGIN PUBLIC KEY-----")
