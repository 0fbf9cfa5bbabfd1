"""Claims from eight processes at once: every job is claimed, and by one of them alone."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections import Counter
from types import SimpleNamespace

import pytest
from homes import DEFAULT, KINDS, own_home
from lossy import HOW, lossy
from postgres import server
from sqlalchemy import select

from app import jobs
from app.db import engine, session
from app.models import QUEUED, RUNNING, SIGNING, Job
from app.settled import settled

PROCESSES = 8
ROWS = {("postgresql", QUEUED): 2000 if DEFAULT == "postgresql" else 500, ("postgresql", SIGNING): 300, ("sqlite", QUEUED): 300, ("sqlite", SIGNING): 100}
CLAIM = {QUEUED: lambda s: jobs.claim(s, "compress.cpu"), SIGNING: jobs.claim_signing}
_together = multiprocessing.get_context("fork").Barrier(PROCESSES)


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tmp_path_factory):
    with own_home(tmp_path_factory.mktemp("home"), request.param):
        yield request.param


def claims(state: str) -> list[tuple]:
    """What one process gets until there is nothing left."""
    engine().dispose(close=False)  # the parent's connections are the parent's
    _together.wait(30)
    got = []
    while True:
        with session() as s, s.begin():
            job = CLAIM[state](s)
        if job is None:
            return got
        got.append((job.id, job.fence, job.attempt, job.sign_attempt))


@pytest.mark.parametrize("state", [QUEUED, SIGNING])
def test_each_row_is_claimed_once(kind, state):
    with session() as s, s.begin():
        made = [Job(owner=f"owner-{i % 7}", spec={}, state=state, handoff={"prefix": "x"}, priority=i % 3) for i in range(ROWS[kind, state])]
        s.add_all(made)
    with multiprocessing.get_context("fork").Pool(PROCESSES) as pool:
        got = [claim for one in pool.map(claims, [state] * PROCESSES, chunksize=1) for claim in one]
    assert Counter(ident for ident, *_ in got) == Counter(j.id for j in made)
    assert {tuple(rest) for _, *rest in got} == {(1, 1, 0) if state == QUEUED else (1, 0, 1)}
    with session() as s:
        rows = s.execute(select(Job.state, Job.fence).where(Job.id.in_([j.id for j in made]))).all()
    assert {tuple(r) for r in rows} == {(RUNNING if state == QUEUED else SIGNING, 1)}


def test_a_claim_passes_over_a_row_that_another_holds(tmp_path):
    """On PostgreSQL alone: SQLite has one writer."""
    with own_home(tmp_path, "postgresql"):
        with session() as s, s.begin():
            s.add_all([Job(id=name, owner="o", spec={}) for name in ("first", "second")])
        with session() as s, s.begin():
            one = jobs.claim(s, "compress.cpu").id
            with session() as other:
                two = jobs.claim(other, "compress.cpu").id
                assert {one, two} == {"first", "second"} and jobs.claim(other, "compress.cpu") is None
                other.rollback()
            assert jobs.claim(s, "compress.cpu").id == two


def test_of_a_comparison_one_job_is_claimed_however_many_ask_at_once(tmp_path):
    """On PostgreSQL alone. The second one waits for the first one's commit, passes its sibling over, and takes what belongs to no comparison."""
    with own_home(tmp_path, "postgresql"):
        with session() as s, s.begin():
            s.add_all([Job(id=name, owner="o", spec={}, comparison_id="c", created_at=i) for i, name in enumerate(("first", "second"))])
            s.add(Job(id="third", owner="o", spec={}, created_at=2))
        got = []

        def other() -> None:
            with session() as s, s.begin():
                got.append(jobs.claim(s, "compress.cpu").id)

        asking = threading.Thread(target=other)
        with session() as s, s.begin():
            assert jobs.claim(s, "compress.cpu").id == "first"
            asking.start()
            time.sleep(0.5)
            assert not got
        asking.join(30)
        assert got == ["third"] and sorted(running()) == ["first", "third"]


@pytest.mark.parametrize("how", HOW)
def test_a_worker_finds_the_job_whose_claim_was_not_answered(tmp_path, how):
    """By its own id. Where the COMMIT comes later than the worker's next look, it takes another job, and this one waits for its lease."""
    me = SimpleNamespace(id="me", device="cpu")
    with lossy(server().port) as way, own_home(tmp_path, "postgresql", way.port):
        with session() as s, s.begin():
            s.add_all([Job(owner="o", spec={}) for _ in range(2)])
        way.spoil(how, having="UPDATE jobs")
        job = settled(lambda s: jobs.claim(s, "compress.cpu", worker=me), lambda s: jobs.claimed(s, me.id))
        assert (way.times, job.state, job.fence, job.attempt, job.worker) == (0, RUNNING, 1, 1, "me")
        while how == "commit late" and len(running()) < 2:
            time.sleep(0.05)
        assert len(running()) == (2 if how == "commit late" else 1) and job.id in running()


def running() -> list[str]:
    with session() as s:
        return list(s.scalars(select(Job.id).where(Job.state == RUNNING)))
