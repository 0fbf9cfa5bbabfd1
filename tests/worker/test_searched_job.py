"""A job with a budget by a worker: searched in a jail of its own, carried out by the stages that there are, and failed with its report where it cannot be kept."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny_models
from homes import own_home
from safetensors.numpy import save
from stored import artifact

from app import jobs
from app.db import session
from app.job_spec import parse_job
from app.models import Companion, Job
from app.storage import Storage
from worker import attempt
from worker.attempt import Attempt


@pytest.fixture
def storage(tmp_path, monkeypatch):
    monkeypatch.setattr(attempt, "flush_outbox", lambda: None)  # there is nobody to wake
    with own_home(tmp_path, poll="0.02", heartbeat="0.05"):
        yield Storage()


def ended(storage: Storage, zygotes, model: str, data: str | None = None, **budget) -> Job:
    """The job as this worker left it."""
    asked = {"input": model, "preset": "auto", "budget": budget} | ({"calibration": data} if data else {})
    spec = parse_job(asked).model_dump(mode="json")
    with session() as s, s.begin():
        beside = [Companion(role="calibration", artifact_id=data, digest="c" * 64)] if data else []
        jobs.submit(s, owner="o", input_id=model, spec=spec, queue="compress.cpu", cache_key="k", companions=beside)
    with session() as s, s.begin():
        job = jobs.claim(s, "compress.cpu")
    Attempt(job, storage, zygotes, lambda: False).run()
    with session() as s:
        return s.get_one(Job, job.id)


def matrices() -> bytes:
    rng = np.random.default_rng(0)
    return save({f"{name}.weight": rng.normal(size=(32, 64)).astype("f4") for name in "ab"})


def test_it_is_searched_then_carried_out(storage, zygotes):
    row = ended(storage, zygotes, artifact(storage, "model", {"model.safetensors": matrices()}, "m").id, avg_bits=5.0)
    assert (row.state, row.error) == ("signing", None) and {"fetch", "search", "compress", "store"} <= row.timings.keys()
    report = json.loads(storage.read(f"{row.handoff['prefix']}/report.json"))
    assert report["search"]["met"] and report["search"]["bounds"]["avg_bits"]["passed"] and report["recipe"]["steps"][0]["method"] == "quantize"
    assert row.spec["recipe"]["steps"][0]["method"] == "auto" and row.spec["budget"]["avg_bits"] == 5


def test_a_budget_that_cannot_be_met_keeps_its_report(storage, zygotes):
    row = ended(storage, zygotes, artifact(storage, "model", {"model.safetensors": matrices()}, "m").id, max_bytes=500)
    assert (row.state, row.error["type"], row.error["status"], row.error["pointer"]) == ("failed", "budget-not-met", 422, "/budget/max_bytes")
    nearest = row.error["nearest"]["max_bytes"]
    report = json.loads(storage.read(row.report_sha256))
    assert nearest > 500 and report["search"]["nearest"] == {"max_bytes": nearest} and not report["search"]["met"]


@pytest.mark.slow
def test_with_data(storage, zygotes, tmp_path):
    tiny_models.build("bert", tmp_path / "m", num_hidden_layers=1)
    model = artifact(storage, "model", {p.name: p.read_bytes() for p in (tmp_path / "m").iterdir()}, "m").id
    data = artifact(storage, "calibration", {"text.txt": "\n".join(tiny_models.texts(30)).encode()}, "c").id
    row = ended(storage, zygotes, model, data, min_cosine=0.95)
    assert (row.state, row.error) == ("signing", None) and {"calibrate", "search", "compress", "measure"} <= row.timings.keys()
    report = json.loads(storage.read(f"{row.handoff['prefix']}/report.json"))
    assert report["search"]["bounds"]["min_cosine"]["value"] >= 0.95 and report["quality"]["measured"]
