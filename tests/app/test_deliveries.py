"""Webhooks as rows: written with a job's end, claimed by one at a time, tried again, given up."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from email.utils import format_datetime
from datetime import UTC, datetime, timedelta

import pytest
from homes import KINDS, own_home
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, func, select, update

from app import deliveries, jobs, sweep
from app.config import settings
from app.db import now, session
from app.errors import NoSpace
from app.models import Artifact, Delivery, Job, Outbox

URL = "https://hooks.example/x"


@pytest.fixture(scope="module", autouse=True, params=KINDS)
def home(request, tmp_path_factory):
    with own_home(tmp_path_factory.mktemp("home"), request.param) as folder:
        yield folder


@pytest.fixture(autouse=True)
def empty(home):
    with session() as s, s.begin():
        for table in (Delivery, Job, Outbox, Artifact):
            s.execute(delete(table))


def submit(url: str | None = URL, **more) -> str:
    values = {"owner": "o", "input_id": None, "spec": {"tags": {"a": "b"}}, "queue": "compress.cpu", "cache_key": "k"} | more
    with session() as s, s.begin():
        return jobs.submit(s, **values, webhook={"url": url} if url else None).id


def do(step, *args, **more):
    with session() as s, s.begin():
        return step(s, *args, **more)


def rows() -> list[Delivery]:
    with session() as s:
        return list(s.scalars(select(Delivery).order_by(Delivery.created_at)))


def due(url: str = URL, owner: str = "o", **values) -> str:
    """A delivery that is due."""
    do(jobs.cancel, submit(url, owner=owner))
    with session() as s, s.begin():
        ident = s.scalar(select(Delivery.id).order_by(Delivery.created_at.desc(), Delivery.due_at.desc()).limit(1))
        s.execute(update(Delivery).where(Delivery.id == ident).values(**values)) if values else None
    return ident


def change(ident: str, **values) -> None:
    with session() as s, s.begin():
        s.execute(update(Delivery).where(Delivery.id == ident).values(**values))


def delay(ident: str) -> float:
    """Seconds until the next attempt."""
    with session() as s:
        return s.scalar(select(Delivery.due_at - now()).where(Delivery.id == ident))


def topics() -> list[str]:
    with session() as s:
        return sorted(s.scalars(select(Outbox.topic)))


def test_success_is_told():
    job_id = submit()
    do(jobs.claim, "compress.cpu")
    do(jobs.handoff, job_id, 1, {"prefix": "tmp/x/1", "files": []})
    signing = do(jobs.claim_signing)
    assert rows() == []
    do(jobs.finish, signing, 2, Artifact(owner="o", kind="model", format="packed", name="n", digest="d", size=0), [], [], None)
    (d,) = rows()
    with session() as s:
        output = s.get_one(Job, job_id).output_id
    data = d.body["data"]
    assert (d.job_id, d.owner, d.url, d.host, d.attempt, d.body["type"]) == (job_id, "o", URL, "hooks.example", 0, "job.succeeded")
    assert (data["id"], data["state"], data["output"], data["error"], data["tags"]) == (job_id, "succeeded", output, None, {"a": "b"})
    assert d.body["timestamp"] == data["finished_at"] and d.body["timestamp"].endswith("Z") and "webhooks" in topics()


def test_failure_is_told_with_the_problem_and_nothing_long():
    job_id = submit()
    do(jobs.claim, "compress.cpu")
    do(jobs.fail, job_id, 1, NoSpace("x" * 5000, secret="s"))
    (d,) = rows()
    assert d.body["type"] == "job.failed" and d.body["data"]["error"] == {"type": "no-space", "title": NoSpace.title, "detail": "x" * 500}


def test_a_cancel_is_told_once():
    job_id = submit()
    do(jobs.cancel, job_id)
    do(jobs.cancel, job_id)
    assert [d.body["type"] for d in rows()] == ["job.cancelled"]


def test_nobody_is_told_who_did_not_ask():
    do(jobs.cancel, submit(None))
    assert rows() == [] and "webhooks" not in topics()


def test_what_is_rolled_back_is_not_told():
    job_id = submit()
    with session() as s, s.begin() as transaction:
        jobs.cancel(s, job_id)
        transaction.rollback()
    assert rows() == []


def test_a_claim_is_a_lease_and_counts_the_attempt():
    ident = due()
    claimed = do(deliveries.claim)
    assert (claimed.id, claimed.attempt) == (ident, 1) and do(deliveries.claim) is None
    change(ident, lease_until=now() - 1)
    again = do(deliveries.claim)  # its process died: sent again, under the same id
    assert (again.id, again.attempt) == (ident, 2)
    do(deliveries.delivered, claimed)  # the one that was thought dead comes back: its word no longer counts
    assert rows()[0].delivered_at is None and rows()[0].lease_until
    do(deliveries.delivered, again)
    assert rows()[0].delivered_at and rows()[0].due_at is None and do(deliveries.claim) is None


def test_claims_leave_out_hosts_and_owners_that_have_enough():
    a, b, c = due("https://a.example/"), due("https://b.example/"), due("https://a.example/", owner="p")
    assert do(deliveries.claim, ["a.example"]).id == b
    assert do(deliveries.claim, [], ["o"]).id == c
    assert do(deliveries.claim, ["a.example"], ["o"]) is None and do(deliveries.claim).id == a


def test_the_schedule_to_its_end():
    ident = due()
    for wanted in deliveries.DELAYS:
        d = do(deliveries.claim)
        do(deliveries.failed, d, "the answer was 500")
        assert wanted - 1 <= delay(ident) <= 1.2 * wanted and rows()[0].error == "the answer was 500"
        assert do(deliveries.claim) is None
        change(ident, due_at=now() - 1)
    do(deliveries.failed, do(deliveries.claim), "the answer was 500")
    (d,) = rows()
    assert d.due_at is None and d.delivered_at is None and d.attempt == len(deliveries.DELAYS) + 1


def test_retry_after_is_respected_up_to_a_day():
    ident = due()
    for asked, low, high in (("100", 99, 100), ("1", 299, 360), (str(10**30), 86399, 86400)):
        do(deliveries.failed, do(deliveries.claim), "x", retry_after=asked)
        assert low <= delay(ident) <= max(high, low + 1)
        change(ident, due_at=now() - 1)
        if asked == "1":
            change(ident, attempt=0)


def test_what_is_final_is_given_up():
    ident = due()
    do(deliveries.failed, do(deliveries.claim), "e" * 900, final=True)
    (d,) = rows()
    assert (d.due_at, d.delivered_at, d.error, d.id) == (None, None, "e" * 500, ident)


@pytest.mark.parametrize("state", ["given up", "delivered", "waiting"])
def test_a_retry_is_due_at_once(state):
    ident = due()
    first = do(deliveries.claim)
    do(deliveries.delivered, first) if state == "delivered" else do(deliveries.failed, first, "x", final=state == "given up")
    with session() as s, s.begin():
        s.execute(delete(Outbox))
        deliveries.retry(s, s.get_one(Delivery, ident))
    again = do(deliveries.claim)
    assert (again.id, again.attempt, again.delivered_at) == (ident, 2, None) and topics() == ["webhooks"]


def test_a_retry_of_one_under_way_sends_no_second():
    ident = due()
    do(deliveries.claim)
    with session() as s, s.begin():
        deliveries.retry(s, s.get_one(Delivery, ident))
    assert do(deliveries.claim) is None


def test_the_sweep_wakes_for_what_is_due_and_not_at_every_turn():
    with session() as s, s.begin():
        assert sweep.rewake(s) == set()
    ident = due()
    woken = [do(sweep.rewake) for _ in range(2)]
    assert woken == [{"webhooks"}, set()]
    change(ident, woken_at=now() - settings().rewake - 1)
    assert do(sweep.rewake) == {"webhooks"}
    do(deliveries.claim)
    assert do(sweep.rewake) == set()


@pytest.mark.parametrize(
    "text, seconds", [(None, 0), ("", 0), ("0", 0), ("120", 120), (" 7 ", 7), ("-5", 0), ("1.5", 0), ("soon", 0), ("٣", 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0)]
)
def test_retry_after(text, seconds):
    assert deliveries.asked_delay(text) == seconds


def test_retry_after_as_a_date():
    then = datetime.now(UTC) + timedelta(seconds=600)
    assert 590 < deliveries.asked_delay(format_datetime(then, usegmt=True)) <= 600


@given(st.text(max_size=40))
def test_any_retry_after_is_read(text):
    assert deliveries.asked_delay(text) >= 0


def test_processes_that_claim_at_once_get_each_delivery_once():
    idents = {due(f"https://h{i}.example/") for i in range(30)}
    code = (
        "from app import deliveries\nfrom app.db import session\n"
        "while True:\n    with session() as s, s.begin():\n        d = deliveries.claim(s)\n    if d is None: break\n    print(d.id)"
    )
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    claimed = Counter(line for p in running for line in p.communicate(timeout=60)[0].split())
    assert set(claimed) == idents and set(claimed.values()) == {1}


def test_a_job_takes_its_deliveries_with_it():
    due()
    with session() as s, s.begin():
        s.execute(delete(Job))
        assert s.scalar(select(func.count()).select_from(Delivery)) == 0
