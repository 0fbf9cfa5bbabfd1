"""A job that takes long, given back in the middle by one worker and brought to its end by another."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from PIL import Image
from homes import own_home
from stored import artifact

from app import jobs
from app.db import session
from app.models import QUEUED, SIGNING, Companion, Job
from app.storage import Storage
from worker import attempt
from worker.attempt import Attempt
from worker.snapshots import Snapshots

STEP = {
    "method": "prune",
    "saliency": "fisher",
    "scope": "global",
    "sparsity": 0.5,
    "schedule": {"kind": "cubic", "steps": 3},
    "recover": {"steps": 500, "batch_size": 8, "learning_rate": 1e-3},
}


@pytest.fixture
def storage(tmp_path, monkeypatch):
    monkeypatch.setattr(attempt, "flush_outbox", lambda: None)  # there is nobody to wake
    with own_home(tmp_path, poll="0.02", heartbeat="0.05", threads="1"):
        yield Storage()


def claimed() -> Job:
    with session() as s, s.begin():
        return jobs.claim(s, "compress.cpu")


@pytest.mark.parametrize("architecture", ["transform", "hyperprior"])
def test_a_codec_is_trained_on_from_where_the_last_worker_was(storage, zygotes, architecture):
    y, x = np.mgrid[:48, :56]
    images = {f"{i}.png": png(np.stack([np.sin(x / (3.0 + i)), np.cos(y / 5.0), np.sign(np.sin((x + y) / 4.0))], -1)) for i in range(3)}
    source = artifact(storage, "images", images, "photos")
    spec = {"kind": "images", "recipe": {"steps": [{"method": "train_codec", "minutes": 0.1, "lambda": 0.02, "architecture": architecture}]}, "output": {"format": "codec"}, "gates": {}, "sanitize": "strip", "seed": 0}
    with session() as s, s.begin():
        jobs.submit(s, owner="o", input_id=source.id, spec=spec, queue="compress.cpu", cache_key="k")
    job = claimed()
    key = f"tmp/{job.id}/recovery/codec.safetensors"
    Attempt(job, storage, zygotes, lambda: storage.exists(key)).run()
    with session() as s:
        assert s.get_one(Job, job.id).state == QUEUED and storage.exists(key)
    left = metadata(storage.read(key))
    Attempt(claimed(), storage, zygotes, lambda: False).run()
    with session() as s:
        row = s.get_one(Job, job.id)
    assert row.state == SIGNING and not storage.exists(key)
    told = json.loads(storage.read(f"{row.handoff['prefix']}/report.json"))["training"]
    assert told["architecture"] == architecture and told["curve"][: len(left["curve"])] == left["curve"] and told["steps"] > left["steps"] > 0


def png(values: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray((128 + 100 * values).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def metadata(data: bytes) -> dict:
    """What a state tells of a training."""
    size = int.from_bytes(data[:8], "little")
    return json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["training"])


GPTQ = {"method": "quantize", "algorithm": "gptq", "num_bits": 3}


@pytest.mark.parametrize("step, left, layers", [(STEP, "training", 2), (GPTQ, "00001", 16)], ids=["recover", "gptq"])
def test_the_next_worker_goes_on_from_where_the_last_one_was(storage, zygotes, tmp_path, monkeypatch, step, left, layers):
    tiny_models.build("bert", tmp_path / "m", num_hidden_layers=layers)
    model = artifact(storage, "model", {p.name: p.read_bytes() for p in (tmp_path / "m").iterdir()}, "m")
    data = artifact(storage, "calibration", {"text.txt": "\n".join(tiny_models.texts(40)).encode()}, "c")
    spec = {"recipe": {"steps": [step]}, "output": {"format": "packed"}, "gates": {}, "sanitize": "report", "seed": 0}
    with session() as s, s.begin():
        beside = [Companion(role="calibration", artifact_id=data.id, digest="c" * 64)]
        jobs.submit(s, owner="o", input_id=model.id, spec=spec, queue="compress.cpu", cache_key="k", companions=beside)
    job, found = claimed(), []
    key = f"tmp/{job.id}/recovery/{left}.safetensors"
    Attempt(job, storage, zygotes, lambda: storage.exists(key)).run()
    with session() as s:
        assert s.get_one(Job, job.id).state == QUEUED and storage.exists(key)
    fetch = Snapshots.fetch

    def spy(self, path: Path):
        found.append(fetch(self, path))
        found.extend(p.stem for p in found[-1].iterdir())
        return found[0]

    monkeypatch.setattr(Snapshots, "fetch", spy)
    Attempt(claimed(), storage, zygotes, lambda: False).run()
    with session() as s:
        row = s.get_one(Job, job.id)
    assert row.state == SIGNING and left in found and not storage.exists(key)
    report = json.loads(storage.read(f"{row.handoff['prefix']}/report.json"))
    if step is STEP:
        assert report["recovery"][0]["method"] == "prune" and report["recovery"][0]["steps_run"] > 300
    else:
        assert report["reconstruction"]["stages"] == 17 and "reconstruct" in row.timings
