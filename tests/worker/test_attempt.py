"""One attempt by one worker, against a real database, a real store and a real child: how it ends, and what it leaves behind."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from celery.worker import state
from homes import own_home
from lossy import HOW, lossy
from postgres import server
from safetensors.numpy import save
from sqlalchemy import select, update

from app import jobs, logs, meters, pause, sweep
from app.blobs import hold
from app.config import settings
from app.db import now, session
from app.errors import StorageFull, Unavailable
from app.models import Artifact, ArtifactFile, Job, Meter, Outbox
from app.storage import Storage
from worker import attempt, tasks
from worker.attempt import Attempt

SPEC = {"recipe": {"steps": [{"method": "lossless"}]}, "output": {"format": "packed"}, "gates": {}, "sanitize": "report", "seed": 0}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(attempt, "flush_outbox", lambda: None)  # there is nobody to wake
    with own_home(tmp_path, poll="0.02", heartbeat="0.05"):
        yield tmp_path


@pytest.fixture
def storage(home) -> Storage:
    return Storage()


def claimed(storage: Storage, data: bytes | None = None, **spec) -> Job:
    """A job on a small model, claimed by this worker."""
    data = save({"a.weight": np.arange(4096, dtype="f4").reshape(64, 64)}) if data is None else data
    _, sha256 = storage.put("tmp/up/1/x", [data])
    with session() as s, s.begin():
        hold(s, sha256, len(data))
    storage.promote("tmp/up/1/x", sha256)
    with session() as s, s.begin():
        source = Artifact(owner="o", kind="model", format="safetensors", name="m", digest="c" * 64, size=len(data))
        source.files = [ArtifactFile(path="model.safetensors", size=len(data), sha256=sha256)]
        s.add(source)
        s.flush()
        jobs.submit(s, owner="o", input_id=source.id, spec=SPEC | spec, queue="compress.cpu", cache_key="k")
    with session() as s, s.begin():
        return jobs.claim(s, "compress.cpu")


def get(job: Job) -> Job:
    with session() as s:
        return s.get_one(Job, job.id)


def left(storage: Storage) -> list[str]:
    """Whatever lies in `tmp/` and in the scratch folder."""
    return [f.key for f in storage.list("tmp")] + [p.name for p in settings().scratch.glob("*")]


def test_it_is_handed_over(storage, zygotes):
    job = claimed(storage)
    Attempt(job, storage, zygotes, lambda: False).run()
    row = get(job)
    assert (row.state, row.attempt, row.error) == ("signing", 1, None)
    assert row.handoff["prefix"] == f"tmp/{job.id}/1" and [f["path"] for f in row.handoff["files"]] == ["model.packed.safetensors"]
    assert row.handoff["environment"]["torch"] and row.handoff["started"] <= row.handoff["ended"]
    assert sorted(left(storage)) == [f"tmp/{job.id}/1/files/model.packed.safetensors", f"tmp/{job.id}/1/report.json"]


def test_its_figures_are_measured(storage, zygotes):
    job = claimed(storage)
    Attempt(job, storage, zygotes, lambda: False).run()
    row = get(job)
    told, packed = row.figures, row.handoff["files"][0]["size"]
    assert told["bytes_after"] == packed and told["ratio"] == round(told["bytes_before"] / packed, 4) and told["relative_error"] == 0
    assert {"fetch", "compress", "verify", "store"} <= told["seconds"].keys() and told["restore_seconds"] == told["seconds"]["verify"]
    assert 50 << 20 < told["peak_memory"] < 8 << 30
    assert row.handoff["figures"] == told


def test_a_job_that_misses_its_gate_has_figures_too(storage, zygotes):
    job = claimed(storage, recipe={"steps": [{"method": "prune", "sparsity": 0.5}]}, gates={"max_relative_error": 0.01})
    Attempt(job, storage, zygotes, lambda: False).run()
    row = get(job)
    assert (row.state, row.error["type"]) == ("failed", "gate-failed")
    assert row.figures["relative_error"] > 0.01 and row.figures["peak_memory"] > 50 << 20 and row.figures["seconds"]["verify"] >= 0


def test_what_was_handed_over_stays_whatever_happens_next(storage, zygotes, monkeypatch):
    """As when the commit's answer is lost on its way: the job is in other hands, and its files are theirs."""

    def broken():
        raise ConnectionError("lost")

    monkeypatch.setattr(attempt, "flush_outbox", broken)
    job = claimed(storage)
    Attempt(job, storage, zygotes, lambda: False).run()
    assert get(job).state == "signing" and len(left(storage)) == 2


def test_an_unforeseen_error_leaves_the_job_to_its_lease(storage, zygotes, monkeypatch):
    def broken(*_):
        raise ConnectionError("unforeseen")

    job = claimed(storage)
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "get_file", broken)
        Attempt(job, storage, zygotes, lambda: False).run()
    assert (get(job).state, get(job).attempt) == ("running", 1) and left(storage) == []
    with session() as s, s.begin():
        s.execute(update(Job).values(lease_until=now() - 1))
    with session() as s, s.begin():
        sweep.expire(s)
    assert get(job).state == "queued"


@pytest.mark.parametrize("error, method", [(Unavailable, "get_file"), (StorageFull, "put_file")])
def test_a_store_that_is_away_or_full_costs_no_attempt(storage, zygotes, monkeypatch, error, method):
    def away(*_):
        raise error("the store is away")

    job = claimed(storage)
    monkeypatch.setattr(Storage, method, away)
    for fence in range(1, settings().max_attempts + 2):
        assert Attempt(job, storage, zygotes, lambda: False).run() is False
        assert (get(job).state, get(job).attempt, get(job).fence) == ("queued", 0, fence) and left(storage) == []
        with session() as s, s.begin():
            job = jobs.claim(s, "compress.cpu")
    monkeypatch.undo()
    assert Attempt(job, storage, zygotes, lambda: False).run() and get(job).state == "signing"
    with session() as s:
        assert s.scalar(select(Meter.count).where(Meter.labels == "why=storage")) == settings().max_attempts + 1


def test_while_the_store_is_away_a_worker_claims_seldom_and_stops_at_once(storage, zygotes, monkeypatch):
    def away(*_):
        raise Unavailable("the store is away")

    one = claimed(storage)
    with session() as s, s.begin():
        jobs.requeue(s, one.id, one.fence, why="x", costs_attempt=False)
        jobs.submit(s, owner="o", input_id=one.input_id, spec=SPEC, queue="compress.cpu", cache_key="k")
    monkeypatch.setattr(Storage, "get_file", away)
    monkeypatch.setattr(pause, "FIRST", 300.0)
    monkeypatch.setattr(state, "should_stop", None)
    monkeypatch.setattr(tasks, "_zygotes", zygotes)
    monkeypatch.setattr(tasks, "_presence", [SimpleNamespace(id="w", device="cpu", queues=["compress.cpu"], identity=None)])
    working = threading.Thread(target=tasks.wake)
    working.start()
    while get(one).fence < 2 or get(one).state != "queued":
        time.sleep(0.01)
    time.sleep(0.3)
    with session() as s:
        assert sorted(s.execute(select(Job.state, Job.attempt, Job.fence))) == [("queued", 0, 0), ("queued", 0, 2)]
    state.should_stop = 0  # as Celery does on SIGTERM
    working.join(30)
    assert not working.is_alive()


def test_a_refusal_is_final(storage, zygotes):
    job = claimed(storage, b"\x10\0\0\0\0\0\0\0no json at all..")
    Attempt(job, storage, zygotes, lambda: False).run()
    assert (get(job).state, get(job).attempt, get(job).error["type"]) == ("failed", 1, "invalid-safetensors") and left(storage) == []


def test_a_failed_gate_keeps_its_report(storage, zygotes):
    job = claimed(storage, gates={"max_bytes": 1})
    Attempt(job, storage, zygotes, lambda: False).run()
    row = get(job)
    assert (row.state, row.error["type"]) == ("failed", "gate-failed") and row.error["pointer"] == "/gates/max_bytes"
    assert storage.exists(row.report_sha256) and left(storage) == []


def test_too_little_memory_is_final(storage, zygotes, monkeypatch):
    monkeypatch.setattr(settings(), "child_memory", 8 << 20)
    job = claimed(storage, save({"a.weight": np.random.default_rng(0).normal(size=(4096, 2048)).astype("f4")}))
    Attempt(job, storage, zygotes, lambda: False).run()
    assert (get(job).state, get(job).attempt, get(job).error["type"]) == ("failed", 1, "out-of-memory"), get(job).error


@pytest.mark.parametrize("where", ["scratch_bytes", "disk"])
def test_too_little_disk_is_final(storage, zygotes, monkeypatch, where):
    if where == "disk":
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Storage, "get_file", full)
    else:
        monkeypatch.setattr(settings(), "scratch_bytes", 1000)
    job = claimed(storage)
    Attempt(job, storage, zygotes, lambda: False).run()
    assert (get(job).state, get(job).attempt, get(job).error["type"]) == ("failed", 1, "no-space"), get(job).error
    assert left(storage) == []


@pytest.mark.parametrize("how", ["changed", "gone"])
def test_an_input_that_is_no_longer_what_it_was_is_not_read(storage, zygotes, how):
    job = claimed(storage)
    blob = next(storage.list("blobs")).key
    storage.put(blob, [b"other"]) if how == "changed" else storage.delete(blob)
    Attempt(job, storage, zygotes, lambda: False).run()
    assert (get(job).state, get(job).error["type"]) == ("failed", "storage-damaged") and left(storage) == []


def test_a_drain_in_the_middle_of_a_copy_costs_no_attempt(storage, zygotes):
    job = claimed(storage)
    Attempt(job, storage, zygotes, lambda: True).run()
    assert (get(job).state, get(job).attempt, get(job).fence) == ("queued", 0, 1) and left(storage) == []


def test_a_cancel_in_the_middle_of_a_copy_writes_nothing(storage, zygotes, monkeypatch):
    job = claimed(storage)
    started = threading.Event()

    def slow(self, sha256, path, advance):
        started.set()
        for _ in range(500):
            time.sleep(0.01)
            advance(1)

    monkeypatch.setattr(Storage, "get_file", slow)
    working = threading.Thread(target=Attempt(job, storage, zygotes, lambda: False).run)
    working.start()
    started.wait()
    with session() as s, s.begin():
        jobs.cancel(s, job.id)
    start = time.monotonic()
    working.join(5)
    assert time.monotonic() - start < 1 and not working.is_alive()
    assert (get(job).state, get(job).fence) == ("cancelled", 2) and left(storage) == []


def test_a_claim_that_was_lost_unnoticed_hands_nothing_over(storage, zygotes, monkeypatch):
    """As a worker that was stopped past its lease: it goes on before its claim's thread has looked."""
    monkeypatch.setattr(settings(), "poll", 60.0)
    job = claimed(storage)
    with session() as s, s.begin():
        s.execute(update(Job).values(lease_until=now() - 1))
    with session() as s, s.begin():
        sweep.expire(s)
    with session() as s, s.begin():
        again = jobs.claim(s, "compress.cpu")
    Attempt(job, storage, zygotes, lambda: False).run()
    assert (get(job).state, get(job).fence, get(job).handoff) == ("running", again.fence, None) and left(storage) == []


def test_a_past_deadline_is_final(storage, zygotes, monkeypatch):
    monkeypatch.setattr(settings(), "job_timeout", 0.0)
    job = claimed(storage)
    Attempt(job, storage, zygotes, lambda: False).run()
    assert (get(job).state, get(job).error["type"]) == ("failed", "deadline-exceeded") and left(storage) == []


def measured(name: str) -> dict[str, tuple[int, float]]:
    with session() as s:
        return {labels["stage"]: (count, total) for n, labels, count, total in meters.all_meters(s) if n == name and labels["method"] == "lossless"}


def test_its_stages_are_measured(storage, zygotes):
    job = claimed(storage)
    Attempt(job, storage, zygotes, lambda: False).run()
    timings, seconds, nbytes = get(job).timings, measured("stage_seconds"), measured("stage_bytes")
    assert set(timings) == set(seconds) == set(nbytes) == {"fetch", "compress", "verify", "store"}
    assert all(seconds[stage][0] == 1 and abs(seconds[stage][1] - timings[stage]) < 0.001 for stage in timings)
    source = next(f.size for f in storage.list("blobs"))
    assert [nbytes[stage][0] for stage in ("fetch", "compress", "verify")] == [source] * 3 and 0 < nbytes["store"][0] < source
    with session() as s:
        assert meters.rate(s, "lossless", "cpu") is None  # such a small one says nothing


def test_a_large_input_tells_the_rate(storage, zygotes, monkeypatch):
    monkeypatch.setattr(meters, "LARGE", 1)
    Attempt(claimed(storage), storage, zygotes, lambda: False).run()
    with session() as s:
        assert meters.rate(s, "lossless", "cpu") > 0


def test_its_lines_in_the_log_name_the_job_and_the_request_that_made_it(storage, zygotes, caplog):
    caplog.set_level("INFO")
    caplog.handler.addFilter(about_filter := logs.About())
    with logs.about(request="made-by"):
        job = claimed(storage)
    Attempt(job, storage, zygotes, lambda: False).run()
    caplog.handler.removeFilter(about_filter)
    told = [(r.request_id, r.job_id, r.attempt, r.getMessage()) for r in caplog.records if r.name == "worker.attempt"]
    assert [t[:3] for t in told] == [("made-by", job.id, 1)] * 2 and "begins" in told[0][3] and "handed over" in told[1][3]


def test_an_attempt_that_was_given_back_is_not_measured(storage, zygotes):
    Attempt(claimed(storage), storage, zygotes, lambda: True).run()
    assert measured("stage_seconds") == {}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("end", ["signing", "failed", "queued"])
def test_it_ends_as_it_should_though_the_answer_to_its_commit_is_lost(tmp_path, zygotes, monkeypatch, how, end):
    """On PostgreSQL, behind a proxy that loses the COMMIT of the job's change of state, or its answer."""
    monkeypatch.setattr(attempt, "flush_outbox", lambda: None)
    with lossy(server().port) as way, own_home(tmp_path, "postgresql", way.port, poll="60"):
        job = claimed(storage := Storage(), b"\x10\0\0\0\0\0\0\0no json at all.." if end == "failed" else None)
        way.spoil(how, having="UPDATE jobs")
        Attempt(job, storage, zygotes, lambda: end == "queued").run()
        row = get(job)
        assert (way.times, row.state, row.fence, row.attempt) == (0, end, 1, 0 if end == "queued" else 1)
        with session() as s:
            assert sorted(s.scalars(select(Outbox.topic))) == {"signing": ["compress.cpu", "sign"], "failed": ["compress.cpu"], "queued": ["compress.cpu"] * 2}[end]
            assert {*s.scalars(select(Meter.count).where(Meter.name == "stage_seconds"))} <= {1}
        assert len(left(storage)) == (2 if end == "signing" else 0)
