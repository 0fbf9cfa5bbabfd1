"""What a worker's hold on its job writes."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from homes import own_home
from sqlalchemy import event

from app import jobs
from app.db import engine, session
from app.models import Job
from worker.claim import Claim

SPEC = {"recipe": {"steps": [{"method": "lossless"}]}, "output": {"format": "packed"}}


@pytest.fixture(autouse=True)
def home(tmp_path):
    with own_home(tmp_path, poll="0.01", heartbeat="60"):
        yield


@pytest.fixture
def job() -> Job:
    with session() as s, s.begin():
        jobs.submit(s, owner="o", input_id=None, spec=SPEC, queue="compress.cpu", cache_key="k", input_bytes=10**12)
        return jobs.claim(s, "compress.cpu", worker=SimpleNamespace(id="w", device="cpu"))


@pytest.fixture
def updates():
    """Every UPDATE that is sent."""
    seen = []

    def note(_, __, statement, *___):
        seen.extend([statement] if statement.startswith("UPDATE jobs SET lease_until") else [])

    event.listen(engine(), "before_cursor_execute", note)
    return seen


def told(job: Job) -> dict:
    with session() as s:
        return s.get_one(Job, job.id).progress


def wait_for(what) -> None:
    while not what():
        time.sleep(0.01)


def test_what_nobody_would_see_is_not_written(job, updates):
    with Claim(job) as claim:
        wait_for(lambda: updates)
        for done in range(1, 30):
            claim.progress = {"stage": "fetch", "fraction": done / 10**6, "bytes_done": done, "bytes_total": 10**6}
            time.sleep(0.02)
    assert len(updates) == 1 and told(job)["bytes_done"] == 0


def test_a_stage_is_told_at_once(job, updates):
    with Claim(job) as claim:
        wait_for(lambda: updates)
        claim.progress = {"stage": "compress", "fraction": 0.0, "bytes_done": 0, "bytes_total": 10**6}
        wait_for(lambda: told(job)["stage"] == "compress")
    assert len(updates) == 2
