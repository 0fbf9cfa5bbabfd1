"""Whose turn it is, against a model in plain Python, on both databases."""

from __future__ import annotations

from collections import Counter

import pytest
from homes import KINDS, own_home
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from sqlalchemy import delete, select

from app import jobs
from app.config import settings
from app.db import session
from app.errors import TooManyJobs
from app.jobs import PRIORITIES
from app.models import QUEUED, RUNNING, SIGNING, Job, Outbox
from app.queues import CPU, GPU
from app.turns import turns

LARGE, SMALL = CPU


@pytest.fixture(scope="module", params=KINDS, autouse=True)
def home(request, tmp_path_factory):
    with own_home(tmp_path_factory.mktemp("home"), request.param):
        yield


def empty() -> None:
    with session() as s, s.begin():
        for table in (Job, Outbox):
            s.execute(delete(table))


@pytest.fixture(autouse=True)
def afresh(home):
    empty()


def submit(owner: str, priority: str = "normal", queue: str = SMALL) -> str:
    with session() as s, s.begin():
        return jobs.submit(s, owner=owner, input_id=None, spec={"priority": priority}, queue=queue, cache_key="k").id


def claim(*queues: str) -> Job | None:
    with session() as s, s.begin():
        return jobs.claim(s, *(queues or CPU))


def finish(job: Job) -> None:
    with session() as s, s.begin():
        assert jobs.handoff(s, job.id, job.fence, {"files": []})


def due(queues: tuple[str, ...]) -> str | None:
    """The id of the job whose turn it is, by the rule as the documentation has it."""
    with session() as s:
        every = s.scalars(select(Job)).all()
    queued = [j for j in every if j.state == QUEUED]
    here = [j for j in queued if j.queue in queues]

    def standing(owner: str) -> tuple:
        served = [j.started_at for j in every if j.owner == owner and j.started_at is not None]
        running = sum(j.owner == owner and j.state == RUNNING for j in every)
        return running, max(served, default=0), min(j.created_at for j in queued if j.owner == owner), owner

    owner = min({j.owner for j in here}, key=standing, default=None)
    mine = [j for j in here if j.owner == owner]
    return min(((j.priority, queues.index(j.queue), j.created_at, j.id) for j in mine), default=(None,))[-1]


STEPS = st.one_of(
    st.tuples(st.just("submit"), st.sampled_from("abcd"), st.sampled_from(sorted(PRIORITIES)), st.sampled_from(CPU + GPU)),
    st.tuples(st.just("claim"), st.sampled_from([CPU, GPU, (SMALL,), GPU + CPU])),
    st.tuples(st.just("finish"), st.integers(0, 20)),
    st.tuples(st.just("give back"), st.integers(0, 20)),
)


@examples(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEPS, min_size=10, max_size=40))
def test_every_claim_is_the_one_whose_turn_it_is(steps):
    empty()
    running: list[Job] = []
    for step, *given_ in steps:
        if step == "submit":
            submit(*given_)
        elif step == "claim":
            expected, job = due(given_[0]), claim(*given_[0])
            assert (job and job.id) == expected
            running += [job] if job else []
        elif running:
            job = running.pop(given_[0] % len(running))
            if step == "finish":
                finish(job)
            else:
                with session() as s, s.begin():
                    assert jobs.requeue(s, job.id, job.fence, why="x", costs_attempt=False)


@examples(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from("abcde"), st.lists(st.sampled_from(sorted(PRIORITIES)), min_size=1, max_size=8), min_size=2), st.randoms(use_true_random=False))
def test_with_one_worker_nobody_is_served_twice_while_another_waits(owners, order):
    empty()
    for owner, priority in order.sample(every := [(o, p) for o, ps in owners.items() for p in ps], len(every)):
        submit(owner, priority)
    left, since = Counter({o: len(ps) for o, ps in owners.items()}), dict.fromkeys(owners, 0)
    served: list[str] = []
    while job := claim():
        for other in left:
            assert other == job.owner or not left[other] or served[since[other] :].count(job.owner) == 0
        served.append(job.owner)
        left[job.owner] -= 1
        since[job.owner] = len(served)
        finish(job)
    assert Counter(served) == {o: len(ps) for o, ps in owners.items()}


@pytest.mark.parametrize("workers", [1, 3])
def test_a_single_job_goes_before_the_rest_of_a_thousand(workers):
    with session() as s, s.begin():
        s.add_all([Job(owner="many", spec={}, priority=-1, queue=LARGE) for _ in range(1000)])
    running = [claim() for _ in range(workers)]
    late = submit("one", "low")
    finish(running.pop())
    assert claim().id == late
    finish(running.pop() if running else claim())
    assert claim().owner == "many"


def test_the_priority_of_a_job_counts_before_its_queue_and_its_age():
    old, large, low, high = submit("a"), submit("a", queue=LARGE), submit("a", "low", LARGE), submit("a", "high")
    assert [claim().id for _ in range(4)] == [high, large, old, low]


def test_a_worker_takes_what_there_is():
    large = submit("a", queue=LARGE)
    assert claim(SMALL) is None and claim(*GPU) is None and claim(*CPU).id == large


def test_there_is_one_turn_for_each_owner_and_queue_however_many_jobs():
    with session() as s, s.begin():
        s.add_all([Job(owner=f"o{i % 3}", spec={}, queue=CPU[i // 3 % 2]) for i in range(60)])
    with session() as s:
        assert Counter(turns(s, CPU)) == Counter((f"o{i}", q) for i in range(3) for q in CPU)


def sign() -> Job | None:
    with session() as s, s.begin():
        return jobs.claim_signing(s)


def handed(owner: str) -> None:
    with session() as s, s.begin():
        jobs.submit(s, owner=owner, input_id=None, spec={}, queue=SMALL, cache_key="k", handoff={"files": []})


@pytest.mark.parametrize("signers", [1, 3])
def test_owners_take_turns_at_being_signed(signers):
    for _ in range(20):
        handed("many")
    signing = [sign() for _ in range(signers)]
    handed("one")
    handed("two")
    assert [sign().owner for _ in range(2)] == ["one", "two"]
    for job in signing:
        with session() as s, s.begin():
            assert jobs.fail(s, job.id, job.fence, {"type": "x"}, state=SIGNING)
    handed("one")
    handed("three")
    assert sign().owner == "three"  # never served; of the others one and two are being signed already
    assert [sign().owner for _ in range(21 - signers)].count("many") == 20 - signers and sign() is None


def test_an_owner_has_so_many_jobs_that_have_not_ended(monkeypatch):
    monkeypatch.setattr(settings(), "max_open_jobs", 3)
    handed("a")
    first = submit("a")
    claim()
    submit("a")
    with pytest.raises(TooManyJobs) as refused:
        submit("a")
    assert refused.value.status == 429 and refused.value.type == "too-many-jobs" and refused.value.retry_after
    submit("b")
    with session() as s, s.begin():
        jobs.cancel(s, first)
    submit("a")
