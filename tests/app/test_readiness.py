"""What the service says it needs, on real databases; `/readyz` over HTTP is in test_health.py."""

from __future__ import annotations

import shutil
from collections import namedtuple

import pytest
from homes import KINDS, own_home
from sqlalchemy import text, update

from app import doctor, migrate, readiness, workers
from app.config import settings
from app.db import Base, engine, now, session
from app.findings import FAIL, OK, WARN, find
from app.models import Job, JobEvent, Worker
from app.storage import Storage


@pytest.fixture(autouse=True, params=KINDS)
def home(request, tmp_path):
    with own_home(tmp_path, request.param):
        yield tmp_path


def level(name: str) -> tuple[str, str]:
    return find(name, readiness.checks(Storage())[name])[1:]


def worker(ident: str, *queues: str, holds: bool = True) -> None:
    with session() as s, s.begin():
        workers.register(s, Worker(id=ident, queues=list(queues), device="cpu", memory=1, threads=1, jail={"holds": holds}, version="0"))


def test_the_tables_must_be_those_of_this_version():
    Base.metadata.drop_all(engine())
    migrate.upgrade()
    assert level("database")[0] == OK
    with session() as s, s.begin():
        s.execute(text("update alembic_version set version_num = '0001'"))
    found = level("database")
    assert found[0] == FAIL and "0001" in found[1] and readiness.newest() in found[1]


def test_workers_and_their_jails():
    assert level("jail")[0] == FAIL
    worker("a", holds=False)
    assert level("jail")[0] == FAIL and "doctor" in level("jail")[1]
    worker("b", "compress.cpu")
    assert level("jail")[0] == WARN and "1 workers of 2" in level("jail")[1]
    worker("a", "compress.cpu", holds=False)
    assert level("jail")[0] == WARN and "best-effort" in level("jail")[1]


def test_a_queue_that_nobody_serves_is_named():
    worker("a", "compress.cpu")
    with session() as s, s.begin():
        s.add_all([Job(owner="o", spec={}, queue=queue) for queue in ("compress.cpu", "compress.gpu", "compress.gpu")])
    found = level("queues")
    assert found[0] == WARN and "2 in compress.gpu" in found[1] and "compress.cpu" not in found[1].split("wait")[1]
    worker("b", "compress.gpu")
    assert level("queues") == (OK, "compress.cpu: 1, compress.gpu: 1")


def test_a_sign_process_that_does_not_sign_is_missed():
    """From when it was handed over: the work itself may have taken hours."""
    with session() as s, s.begin():
        s.add(job := Job(owner="o", spec={}, state="signing", woken_at=now(), created_at=now() - 9000, started_at=now() - 8000))
        s.flush()
        s.add_all([JobEvent(job_id=job.id, seq=1, kind="state", created_at=now() - 8000), JobEvent(job_id=job.id, seq=2, kind="state")])
    assert level("signing")[0] == OK
    with session() as s, s.begin():
        s.execute(update(JobEvent).where(JobEvent.seq == 2).values(created_at=now() - readiness.UNSIGNED - 1))
        s.add(JobEvent(job_id=job.id, seq=3, kind="progress"))
    assert level("signing")[0] == WARN and level("signing")[1].startswith("1 results")
    with session() as s, s.begin():
        s.execute(update(Job).values(lease_until=now() + 30))
    assert level("signing")[0] == OK


@pytest.mark.parametrize("free, expected", [(1 << 40, OK), (1 << 30, WARN), (1 << 20, FAIL)])
def test_a_disk_that_runs_full(monkeypatch, free, expected):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(free))
    assert level("disk")[0] == expected


def test_a_small_home_holds_nothing_up_where_database_and_store_are_elsewhere(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(16 << 20))
    monkeypatch.setattr(settings(), "database_url", "postgresql://modelpress@postgres/modelpress")
    checks = readiness.checks(Storage())
    assert find("disk", checks["disk"]).level == FAIL  # the store is still in it
    monkeypatch.setattr(settings(), "storage_url", "s3://modelpress")
    assert find("disk", checks["disk"]).level == OK
    assert find("disk", doctor.disk).level == WARN  # for whoever works there
