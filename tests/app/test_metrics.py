"""What Prometheus is told of the service as a whole, from a database that has something to tell."""

from __future__ import annotations

import pytest
from homes import own_home
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from sqlalchemy import event, null, update

from app import jobs, meters, metrics, sweep
from app.config import settings
from app.db import Base, engine, now, session
from app.errors import NoSpace
from app.models import Artifact, Blob, Delivery, Job, Outbox, Upload, Worker


@pytest.fixture(autouse=True)
def home(tmp_path):
    with own_home(tmp_path) as folder:
        yield folder


def scraped(service: metrics.Service | None = None) -> dict[tuple, float]:
    """Every sample, by name and the values of its labels, which stand by name; parsed as OpenMetrics, strictly."""
    registry = CollectorRegistry()
    registry.register(service or metrics.Service())
    families = list(text_string_to_metric_families(generate_latest(registry).decode()))
    assert len({f.name for f in families}) == len(families)
    return {(s.name.removeprefix("modelpress_"), *s.labels.values()): s.value for f in families for s in f.samples}


def do(step, *args, **more):
    with session() as s, s.begin():
        return step(s, *args, **more)


def new(**more) -> str:
    return do(jobs.submit, **{"owner": "alice", "input_id": None, "spec": {}, "queue": "compress.cpu", "cache_key": "k"} | more).id


def test_jobs_by_queue_and_state_and_the_age_of_a_queue():
    old, _, gpu, signing = new(), new(), new(queue="compress.gpu"), new(handoff={"prefix": None})
    with session() as s, s.begin():
        s.execute(update(Job).where(Job.id == old).values(created_at=now() - 1000))
    do(jobs.claim, "compress.gpu")
    told = scraped()
    assert told["jobs", "compress.cpu", "queued"] == 2 and told["jobs", "compress.gpu", "running"] == 1 and told["jobs", "compress.cpu", "signing"] == 1
    assert 1000 <= told["queue_age_seconds", "compress.cpu"] < 1060 and ("queue_age_seconds", "compress.gpu") not in told
    assert told["signing_backlog",] == 1
    do(jobs.claim_signing)
    assert scraped()["signing_backlog",] == 0


def test_ends_by_state_and_type_and_what_went_wrong_before():
    new(), new()
    for _ in range(2):
        job = do(jobs.claim, "compress.cpu")
        with session() as s, s.begin():
            s.execute(update(Job).where(Job.id == job.id).values(created_at=now() - 100))
        do(jobs.fail, job.id, job.fence, NoSpace("x"))
    cancelled = new()
    do(jobs.cancel, cancelled)
    new()
    job = do(jobs.claim, "compress.cpu")
    assert do(jobs.requeue, job.id, job.fence, why="x", costs_attempt=False)
    job = do(jobs.claim, "compress.cpu")
    with session() as s, s.begin():
        s.execute(update(Job).where(Job.id == job.id).values(lease_until=now() - 1))
    do(sweep.expire)
    told = scraped()
    assert told["job_seconds_count", "no", "failed", "no-space"] == 2 and 200 <= told["job_seconds_sum", "no", "failed", "no-space"] < 260
    assert told["job_seconds_count", "no", "cancelled", "none"] == 1
    assert told["requeues_total", "drain"] == 1 and told["requeues_total", "crash"] == 1 and told["leases_expired_total", "compress.cpu"] == 1


def test_a_signing_lease_that_ran_out_is_told():
    new(handoff={"prefix": None})
    for _ in range(settings().max_attempts):
        do(jobs.claim_signing)
        with session() as s, s.begin():
            s.execute(update(Job).values(lease_until=now() - 1))
    do(sweep.expire)
    told = scraped()
    assert told["leases_expired_total", "sign"] == settings().max_attempts and told["job_seconds_count", "yes", "failed", "worker-crashed"] == 1


def test_stages():
    with session() as s, s.begin():
        meters.add(s, "stage_seconds", total=2.0, stage="compress", method="prune", device="cpu")
        meters.add(s, "stage_bytes", count=1 << 40, stage="compress", method="prune", device="cpu")
    told = scraped()
    assert told["stage_seconds_sum", "cpu", "prune", "compress"] == 2.0 and told["stage_seconds_count", "cpu", "prune", "compress"] == 1
    assert told["stage_bytes_total", "cpu", "prune", "compress"] == 1 << 40


def test_what_waits_and_what_is_stored():
    with session() as s, s.begin():
        s.add_all([Blob(sha256=c * 64, size=10, marked_at=mark) for c, mark in (("a", None), ("b", None), ("c", 5.0))])
        job = Job(owner="alice", spec={}, state="succeeded")
        s.add_all([job, artifact := Artifact(owner="alice", kind="model", format="packed", name="n", digest="d", size=0)])
        s.flush()
        open_, done, late = ({"artifact_id": a, "expires_at": now() + after} for a, after in ((None, 60), (artifact.id, 60), (None, -1)))
        s.add_all([Upload(owner="alice", name="n", kind="model", length=1, **more) for more in (open_, done, late)])
        where = {"job_id": job.id, "owner": "alice", "url": "http://x", "body": {}} | ({"host": "x"} if hasattr(Delivery, "host") else {})
        s.add_all([Delivery(due_at=due, **where) for due in (1.0, null())])
        s.add_all([Outbox(topic="sign")])
    told = scraped()
    assert (told["storage_blobs", "referenced"], told["storage_bytes", "referenced"], told["storage_bytes", "marked"]) == (2, 20, 10)
    assert (told["uploads_open",], told["webhooks_pending",], told["outbox",]) == (1, 1, 1)


def test_workers_by_queue_and_device():
    with session() as s, s.begin():
        for ident, queues, ago in (("a", ["compress.cpu", "compress.cpu.large"], 0), ("b", ["compress.cpu"], 0), ("c", ["compress.cpu"], 3600)):
            s.add(Worker(id=ident, queues=queues, device="cpu", memory=1, threads=1, jail={}, version="0", seen_at=now() - ago))
    told = scraped()
    assert (told["workers", "cpu", "compress.cpu"], told["workers", "cpu", "compress.cpu.large"]) == (2, 1)


def test_a_scrape_is_remembered_for_a_moment():
    service, asked = metrics.Service(), []
    scraped(service)
    event.listen(engine(), "before_cursor_execute", lambda *a: asked.append(a[2]))
    scraped(service)
    assert asked == []


def test_a_scrape_without_a_database_says_so():
    Base.metadata.drop_all(engine())
    assert scraped() == {("database_up",): 0}


def test_no_query_reads_the_jobs_that_have_ended():
    """Each query of a scrape finds its jobs by an index that begins with what it asks for."""
    asked = []
    event.listen(engine(), "before_cursor_execute", lambda _c, _cu, statement, parameters, *_: asked.append((statement, parameters)))
    scraped()
    ours = [q for q in asked if "jobs" in q[0]]
    with engine().connect() as c:
        plans = [" ".join(row[3] for row in c.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)) for statement, parameters in ours]
    assert len(plans) >= 2 and all("SEARCH jobs" in p and "SCAN jobs" not in p for p in plans), plans
