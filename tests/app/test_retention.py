"""What goes when its time has come, and what stays although it has."""

from __future__ import annotations

import pytest
from homes import KINDS, own_home
from sqlalchemy import false, func, null, select, update

from app import control, jobs, queue, retention
from app.config import settings
from app.db import now, session
from app.models import Artifact, ArtifactFile, Blob, Delivery, IdempotencyKey, Job, JobEvent


@pytest.fixture(autouse=True, params=KINDS)
def home(request, tmp_path):
    with own_home(tmp_path, request.param, job_ttl="3600", broker_url="redis://127.0.0.1:1/0"):
        yield tmp_path


def artifact(after: float | None) -> str:
    with session() as s, s.begin():
        made = Artifact(owner="o", kind="model", format="packed", name="n", digest="d", size=1, expires_at=None if after is None else now() + after)
        made.files = [ArtifactFile(path="p", size=1, sha256="a" * 64)]
        s.merge(Blob(sha256="a" * 64, size=1))
        s.flush()
        s.add(made)
        s.flush()
        return made.id


def job(state: str, input_id: str | None = None, after: float | None = None) -> str:
    with session() as s, s.begin():
        made = Job(owner="o", spec={}, state=state, input_id=input_id, expires_at=None if after is None else now() + after)
        s.add(made)
        s.flush()
        return made.id


def left(model) -> set[str]:
    with session() as s:
        return set(s.scalars(select(model.id)))


def test_artifacts_go_when_they_have_expired_and_no_job_works_on_them(monkeypatch):
    monkeypatch.setattr(retention, "BATCH", 2)
    gone, kept, later, used = [artifact(-n) for n in range(1, 6)], artifact(None), artifact(60), artifact(-100)
    ended, under_way = job("succeeded", gone[0]), job("running", used)
    assert retention.expire() == (5, 0) and left(Artifact) == {kept, later, used} and left(Job) == {ended, under_way}
    with session() as s, s.begin():
        assert s.get_one(Job, ended).input_id is None
        s.execute(update(Job).values(state="failed"))
    assert retention.expire() == (1, 0) and left(Artifact) == {kept, later}


def test_an_artifact_that_a_job_takes_at_the_last_moment_stays_and_the_others_go(monkeypatch):
    monkeypatch.setattr(retention, "_WORKED_ON", false())  # as where the job comes after the look
    used, gone = artifact(-9), artifact(-1)
    job("running", used)
    assert retention.expire() == (1, 0) and left(Artifact) == {used} and gone


def test_jobs_go_with_all_that_is_theirs_once_nobody_is_to_be_told(monkeypatch):
    monkeypatch.setattr(retention, "BATCH", 2)
    gone, kept, active, untold = [job("failed", after=-n) for n in range(1, 4)], job("succeeded", after=60), job("running", after=-1), job("cancelled", after=-1)
    with session() as s, s.begin():
        for ident in (gone[0], kept):
            s.add_all([JobEvent(job_id=ident, seq=1, kind="state"), IdempotencyKey(owner="o", key=ident, digest="d", job_id=ident)])
        s.add(Delivery(job_id=untold, owner="o", url="https://x", host="x", body={}))
    assert retention.expire() == (0, 3) and left(Job) == {kept, active, untold}
    with session() as s, s.begin():
        assert [s.scalar(select(func.count()).select_from(m)) for m in (JobEvent, IdempotencyKey)] == [1, 1]
        s.execute(update(Delivery).values(due_at=None))
    assert retention.expire() == (0, 1) and left(Delivery) == set()


def test_old_progress_goes_and_what_came_of_a_job_stays(monkeypatch):
    monkeypatch.setattr(retention, "BATCH", 2)
    old, day = now() - retention.PROGRESS_KEPT - 60, retention.PROGRESS_KEPT
    ended, late, long = job("succeeded"), job("failed"), job("running")
    with session() as s, s.begin():
        s.execute(update(Job).where(Job.id == ended).values(finished_at=old))
        s.execute(update(Job).where(Job.id == late).values(finished_at=now() - day / 2))
        for ident in (ended, late, long):
            kinds = ["state", "progress", "progress", "log", "progress", "progress", "progress", "state"]
            s.add_all([JobEvent(job_id=ident, seq=n, kind=kind, created_at=old) for n, kind in enumerate(kinds)])
    retention.expire()
    with session() as s:
        rows = s.execute(select(JobEvent.job_id, JobEvent.seq).order_by(JobEvent.job_id, JobEvent.seq)).all()
    assert sorted(rows) == sorted([(ended, n) for n in (0, 3, 7)] + [(i, n) for i in (late, long) for n in range(8)])


def test_deliveries_that_are_over_go_after_a_month(monkeypatch):
    monkeypatch.setattr(retention, "BATCH", 2)
    its, old = {"job_id": job("succeeded"), "owner": "o", "url": "https://x", "host": "x", "body": {}}, now() - retention.DELIVERIES_KEPT - 1
    with session() as s, s.begin():
        s.add_all([Delivery(due_at=null(), created_at=old, **its) for _ in range(5)])
        s.add_all([Delivery(id="due", due_at=old, created_at=old, **its), Delivery(id="new", due_at=null(), **its)])
    retention.expire()
    assert left(Delivery) == {"due", "new"}


def test_a_job_expires_some_time_after_its_end():
    ident = job("queued")
    with session() as s, s.begin():
        jobs.cancel(s, ident)
    with session() as s:
        ended = s.get_one(Job, ident)
    assert abs(ended.expires_at - ended.finished_at - settings().job_ttl) < 1


def test_the_control_process_does_it(monkeypatch):
    monkeypatch.setitem(queue.app.conf, "broker_url", "redis://127.0.0.1:1/0")
    monkeypatch.setattr(control, "_last_cleaning", float("-inf"))
    artifact(-1)
    control.run()
    assert left(Artifact) == set()
