"""Transitions of a job on a real database: one at a time and in every order. tests/app/test_claims.py has several processes at once."""

from __future__ import annotations

import pytest
from hypothesis import settings as examples
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from homes import KINDS, own_home
from sqlalchemy import delete, func, select, update

from app import jobs, sweep
from app.config import settings
from app.db import now, session
from app.errors import AlreadyFinished, Conflict, NoSpace
from app.models import STATES, TERMINAL, Artifact, Job, Outbox

LEGAL = {
    ("queued", "running"), ("queued", "cancelled"), ("running", "queued"), ("running", "signing"), ("running", "failed"), ("running", "cancelled"),
    ("signing", "succeeded"), ("signing", "failed"),
}  # fmt: skip
HANDOFF = {"prefix": "tmp/x/1", "files": []}


@pytest.fixture(scope="module", autouse=True, params=KINDS)
def home(request, tmp_path_factory):
    with own_home(tmp_path_factory.mktemp("home"), request.param) as folder:
        yield folder


@pytest.fixture(autouse=True)
def empty(home):
    with session() as s, s.begin():
        for table in (Job, Outbox, Artifact):
            s.execute(delete(table))


def new(**more) -> str:
    with session() as s, s.begin():
        return jobs.submit(s, **{"owner": "o", "input_id": None, "spec": {}, "queue": "compress.cpu", "cache_key": "k"} | more).id


def get(job_id: str) -> Job:
    with session() as s:
        return s.get_one(Job, job_id)


def do(step, *args, **more):
    """One transition in a transaction of its own."""
    with session() as s, s.begin():
        return step(s, *args, **more)


def lapse(job_id: str) -> None:
    with session() as s, s.begin():
        s.execute(update(Job).where(Job.id == job_id).values(lease_until=now() - 1))


def topics() -> list[str]:
    with session() as s:
        return sorted(s.scalars(select(Outbox.topic)))


def artifact() -> Artifact:
    return Artifact(owner="o", kind="model", format="packed", name="n", digest="d", size=0)


def test_from_queued_to_succeeded():
    job_id = new()
    assert (get(job_id).state, topics()) == ("queued", ["compress.cpu"])
    job = do(jobs.claim, "compress.cpu")
    assert (job.id, job.state, job.attempt, job.fence) == (job_id, "running", 1, 1) and job.lease_until > job.started_at
    assert do(jobs.heartbeat, job_id, 1, progress={"fraction": 0.5}) and get(job_id).progress == {"fraction": 0.5}
    assert do(jobs.handoff, job_id, 1, HANDOFF) and topics() == ["compress.cpu", "sign"]
    signing = do(jobs.claim_signing)
    assert (signing.id, signing.state, signing.sign_attempt, signing.fence) == (job_id, "signing", 1, 2)
    assert do(jobs.finish, signing, 2, artifact(), [], [], None)
    ended = get(job_id)
    assert ended.state == "succeeded" and ended.output_id and ended.finished_at >= ended.started_at and ended.lease_until is None


def test_the_oldest_is_claimed_first_and_only_from_its_queue():
    first, second, other = new(), new(), new(queue="compress.gpu")
    with session() as s, s.begin():
        s.execute(update(Job).where(Job.id == second).values(created_at=now() + 1))
    assert [do(jobs.claim, "compress.cpu").id for _ in range(2)] == [first, second]
    assert do(jobs.claim, "compress.cpu") is None and do(jobs.claim, "compress.gpu").id == other


def test_an_old_fence_changes_nothing():
    job_id = new()
    do(jobs.claim, "compress.cpu")
    lapse(job_id)
    do(sweep.expire)
    do(jobs.claim, "compress.cpu")
    before = get(job_id)
    late = [
        do(jobs.heartbeat, job_id, 1), do(jobs.held, job_id, 1), do(jobs.handoff, job_id, 1, HANDOFF), do(jobs.fail, job_id, 1, NoSpace("x")),
        do(jobs.requeue, job_id, 1, why="x"), do(jobs.requeue, job_id, 1, why="x", costs_attempt=False),
    ]  # fmt: skip
    assert late == [False] * 6
    after = get(job_id)
    assert (after.state, after.fence, after.attempt, after.lease_until) == (before.state, 2, 2, before.lease_until)


def test_a_late_signature_makes_no_artifact():
    job_id = new(handoff=HANDOFF)
    first = do(jobs.claim_signing)
    lapse(job_id)
    second = do(jobs.claim_signing)
    assert (first.fence, second.fence, second.sign_attempt) == (1, 2, 2)
    with session() as s:
        assert not jobs.finish(s, first, 1, artifact(), [], [], None)
    with session() as s:
        assert s.scalar(select(func.count()).select_from(Artifact)) == 0
    assert get(job_id).state == "signing"


def test_three_crashes_fail_the_job_and_a_drain_costs_none():
    job_id = new()
    for attempt in (1, 2, 3):
        for fence in (2 * attempt - 1, 2 * attempt):  # each attempt is drained once, and crashes then
            job = do(jobs.claim, "compress.cpu")
            assert (job.attempt, job.fence) == (attempt, fence)
            assert do(jobs.requeue, job_id, fence, why="its process ended with code -11", costs_attempt=fence % 2 == 0)
    ended = get(job_id)
    assert (ended.state, ended.attempt, ended.error["type"]) == ("failed", 3, "worker-crashed") and "code -11" in ended.error["detail"]
    assert do(jobs.claim, "compress.cpu") is None


ENDS = [("queued", None), ("running", None), ("signing", Conflict), ("succeeded", AlreadyFinished), ("failed", AlreadyFinished)]


@pytest.mark.parametrize("state, raised", ENDS)
def test_cancelling(state, raised):
    job_id = new()
    with session() as s, s.begin():
        s.execute(update(Job).where(Job.id == job_id).values(state=state, fence=7))
    if raised:
        with pytest.raises(raised):
            do(jobs.cancel, job_id)
        assert (get(job_id).state, get(job_id).fence) == (state, 7)
    else:
        do(jobs.cancel, job_id)
        do(jobs.cancel, job_id)
        assert (get(job_id).state, get(job_id).fence) == ("cancelled", 8)
        assert not do(jobs.heartbeat, job_id, 7)


class Life(RuleBasedStateMachine):
    """Transitions in any order, with good and stale fences: only legal edges, terminal states stay, fences and attempts only grow."""

    known = Bundle("known")

    def __init__(self):
        super().__init__()
        with session() as s, s.begin():
            s.execute(delete(Job))
        self.seen: dict[str, tuple] = {}

    @rule(target=known, hit=st.booleans())
    def submit(self, hit):
        return new(handoff=HANDOFF if hit else None)

    @rule()
    def claim(self):
        do(jobs.claim, "compress.cpu")

    @rule()
    def claim_signing(self):
        do(jobs.claim_signing)

    @rule(job=known, stale=st.integers(0, 1), what=st.sampled_from(["heartbeat", "handoff", "fail", "fail signing", "crash", "drain", "finish"]))
    def work(self, job, stale, what):
        row = get(job)
        fence, before = row.fence - stale, (row.state, row.fence, row.attempt)
        steps = {
            "heartbeat": lambda s: jobs.heartbeat(s, job, fence), "handoff": lambda s: jobs.handoff(s, job, fence, HANDOFF),
            "fail": lambda s: jobs.fail(s, job, fence, NoSpace("x")), "fail signing": lambda s: jobs.fail(s, job, fence, NoSpace("x"), "signing"),
            "crash": lambda s: jobs.requeue(s, job, fence, why="x"), "drain": lambda s: jobs.requeue(s, job, fence, why="x", costs_attempt=False),
        }  # fmt: skip
        with session() as s:
            done = jobs.finish(s, row, fence, artifact(), [], [], None) if what == "finish" else steps[what](s)
            s.commit()
        if stale:
            assert not done
        if not done:
            assert (get(job).state, get(job).fence, get(job).attempt) == before

    @rule(job=known)
    def cancel(self, job):
        try:
            do(jobs.cancel, job)
        except (AlreadyFinished, Conflict):
            pass

    @rule(job=known)
    def lapse_and_sweep(self, job):
        if get(job).lease_until is not None:
            lapse(job)
        do(sweep.expire)

    @invariant()
    def legal(self):
        with session() as s:
            rows = s.scalars(select(Job)).all()
        for row in rows:
            state, fence, attempt = self.seen.get(row.id, (row.state, 0, 0))
            assert row.state in STATES and (row.state == state or (state, row.state) in LEGAL), (state, row.state)
            assert not (state in TERMINAL and (row.state, row.fence) != (state, fence))
            assert row.fence >= fence and row.attempt <= settings().max_attempts and row.sign_attempt <= settings().max_attempts
            assert (row.output_id is not None) == (row.state == "succeeded")
            assert (row.error is not None) == (row.state == "failed")
            assert (row.lease_until is not None) or row.state != "running"
            self.seen[row.id] = (row.state, row.fence, row.attempt)


def test_transitions_in_any_order():
    run_state_machine_as_test(Life, settings=examples(max_examples=12, stateful_step_count=25, deadline=None))
