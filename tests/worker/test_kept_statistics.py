"""Statistics between storage and a worker's scratch folder, and jobs that share them."""

from __future__ import annotations

import json

import pytest
import tiny_models
from homes import own_home
from sqlalchemy import select
from stored import artifact

from app import jobs
from app.db import session
from app.errors import StorageFull
from app.models import Companion, Job, Statistic
from app.storage import Storage, blob_key
from worker import attempt, kept_statistics
from worker.attempt import Attempt

STEPS = [{"method": "prune", "saliency": "fisher", "sparsity": 0.5}]


@pytest.fixture
def storage(tmp_path, monkeypatch):
    monkeypatch.setattr(attempt, "flush_outbox", lambda: None)  # there is nobody to wake
    with own_home(tmp_path, poll="0.02", heartbeat="0.05"):
        yield Storage()


def test_it_comes_back_as_it_went(storage, tmp_path):
    (tmp_path / "s").write_bytes(b"statistics")
    assert not kept_statistics.fetch(storage, "k", tmp_path / "t", lambda n: None)
    kept_statistics.store(storage, "k", "o", tmp_path / "s", "tmp/j/1/statistics", lambda n: None)
    assert kept_statistics.fetch(storage, "k", tmp_path / "t", lambda n: None) and (tmp_path / "t").read_bytes() == b"statistics"
    assert list(storage.list("tmp")) == []


def test_what_is_damaged_is_forgotten(storage, tmp_path):
    (tmp_path / "s").write_bytes(b"statistics")
    kept_statistics.store(storage, "k", "o", tmp_path / "s", "tmp/j/1/statistics", lambda n: None)
    with session() as s:
        (sha256,) = s.scalars(select(Statistic.sha256))
    storage.put(blob_key(sha256), [b"rotten"])
    assert not kept_statistics.fetch(storage, "k", tmp_path / "t", lambda n: None) and not (tmp_path / "t").exists()
    with session() as s:
        assert s.scalars(select(Statistic.key)).all() == []


def test_a_full_store_loses_them_and_nothing_else(storage, tmp_path, monkeypatch):
    def full(*_):
        raise StorageFull("full")

    (tmp_path / "s").write_bytes(b"statistics")
    monkeypatch.setattr(Storage, "put_file", full)
    kept_statistics.store(storage, "k", "o", tmp_path / "s", "tmp/j/1/statistics", lambda n: None)
    assert not kept_statistics.fetch(storage, "k", tmp_path / "t", lambda n: None)


def ended(storage: Storage, zygotes, model: str, data: str, steps=STEPS, **spec) -> tuple[Job, set[str]]:
    """A job as this worker left it, and the stages that took time."""
    whole = {"recipe": {"steps": steps}, "output": {"format": "safetensors"}, "gates": {}, "sanitize": "report", "seed": 0} | spec
    with session() as s, s.begin():
        beside = [Companion(role="calibration", artifact_id=data, digest="c" * 64)]
        jobs.submit(s, owner="o", input_id=model, spec=whole, queue="compress.cpu", cache_key="k", companions=beside)
    with session() as s, s.begin():
        job = jobs.claim(s, "compress.cpu")
    Attempt(job, storage, zygotes, lambda: False).run()
    with session() as s:
        row = s.get_one(Job, job.id)
        return row, set(row.timings)


@pytest.mark.slow
def test_jobs_on_the_same_data_share_one_calibration(storage, zygotes, tmp_path):
    tiny_models.build("gpt2", tmp_path / "m")
    model = artifact(storage, "model", {p.name: p.read_bytes() for p in (tmp_path / "m").iterdir()}, "m").id
    data = artifact(storage, "calibration", {"text.txt": "\n".join(tiny_models.texts(30)).encode()}, "c").id
    first, stages = ended(storage, zygotes, model, data)
    assert (first.state, first.error) == ("signing", None) and "calibrate" in stages
    second, stages = ended(storage, zygotes, model, data, [STEPS[0] | {"sparsity": 0.7}])
    assert second.state == "signing" and "calibrate" not in stages
    third, stages = ended(storage, zygotes, model, data, seed=1)
    assert third.state == "signing" and "calibrate" in stages
    with session() as s:
        assert len(s.scalars(select(Statistic)).all()) == 2
    pruned = {r["name"]: r["sparsity"] for r in json.loads(storage.read(f"{second.handoff['prefix']}/report.json"))["tensors"] if r["action"] == "pruned"}
    assert pruned["transformer.h.0.mlp.c_fc.weight"] == pytest.approx(0.7, abs=0.05)
