"""The process that sends webhooks, against servers that take them, refuse them, or take their time."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from celery.worker import state
from homes import KINDS, own_home
from receiver import receiving
from sqlalchemy import select, update
from standardwebhooks import Webhook

from app import jobs, webhooks
from app.config import settings
from app.courier import Courier
from app.db import now, session
from app.models import Delivery
from app.webhook_secrets import rotate, secret_of


@pytest.fixture(autouse=True, params=KINDS)
def home(request, tmp_path, monkeypatch):
    with own_home(tmp_path, request.param, webhook_allow_private="true", webhook_timeout="2"):
        yield monkeypatch


@pytest.fixture
def receiver():
    with receiving() as r:
        yield r


def end(url: str, owner: str = "alice") -> str:
    """A job that has ended, with a webhook."""
    with session() as s, s.begin():
        job = jobs.submit(s, owner=owner, input_id=None, spec={}, queue="compress.cpu", cache_key="k", webhook={"url": url})
        jobs.cancel(s, job.id)
        return job.id


def told(job_id: str) -> Delivery:
    with session() as s:
        return s.scalars(select(Delivery).where(Delivery.job_id == job_id)).one()


def make_due() -> None:
    with session() as s, s.begin():
        s.execute(update(Delivery).where(Delivery.due_at.is_not(None)).values(due_at=now() - 1))


def test_a_receiver_can_verify_what_arrives(receiver):
    job_id = end(receiver.url("/hook?a=b"))
    with session() as s, s.begin():
        old, new = secret_of(s, "alice").secret, rotate(s, "alice").secret
    webhooks.wake()
    (got,) = receiver.got
    for secret in (old, new):
        event = Webhook(secret).verify(got.body, got.headers)
        assert event["type"] == "job.cancelled" and event["data"]["id"] == job_id and event == told(job_id).body
    assert got.headers["webhook-id"] == told(job_id).id and got.headers["Content-Type"] == "application/json" and got.path == "/hook?a=b"
    assert told(job_id).delivered_at and told(job_id).attempt == 1


def test_each_attempt_has_the_same_id_and_body(receiver):
    job_id = end(receiver.url("/flaky/2"))
    for _ in range(4):
        webhooks.wake()
        make_due()
    assert len(receiver.got) == 3 and len({(g.headers["webhook-id"], g.body) for g in receiver.got}) == 1
    assert told(job_id).delivered_at and told(job_id).attempt == 3 and told(job_id).error is None


@pytest.mark.parametrize(
    "path, error, final",
    [
        ("/500", "the answer was 500", False),
        ("/302", "the answer was 302", False),
        ("/410", "the answer was 410", True),
        ("/slow", "no answer within 2 s", False),
        ("/nonsense", "the answer is not HTTP", False),
    ],
)
def test_what_is_not_taken_says_why(receiver, path, error, final):
    job_id = end(receiver.url(path))
    webhooks.wake()
    d = told(job_id)
    assert (d.error, d.due_at is None, d.delivered_at, d.lease_until) == (error, final, None, None)


def test_retry_after_reaches_the_schedule(receiver):
    job_id = end(receiver.url("/503/4000"))
    webhooks.wake()
    assert told(job_id).due_at > time.time() + 3000


def test_a_name_that_is_private_inside_is_given_up(home, receiver):
    home.setenv("MODELPRESS_WEBHOOK_ALLOW_PRIVATE", "false")
    settings.cache_clear()
    job_id = end(receiver.url("/", "rebind.example"))
    asyncio.run(webhooks.deliver(Courier(lambda host, port: ["127.0.0.1"])))
    assert told(job_id).due_at is None and "not public" in told(job_id).error and receiver.got == []


def test_slow_hosts_hold_up_no_other(home, receiver):
    """Six slow hosts of one owner fill her share; everybody else's webhooks arrive while hers are still waiting."""
    home.setenv("MODELPRESS_WEBHOOK_TIMEOUT", "25")
    settings.cache_clear()
    slow = [end(receiver.url("/slow", f"slow{i % 6}.example")) for i in range(30)]
    fast = [end(receiver.url(f"/fast/{i}", "fast.example"), "bob") for i in range(20)]

    async def scenario():
        sending = asyncio.create_task(webhooks.deliver(Courier(lambda host, port: ["127.0.0.1"])))
        while not await asyncio.to_thread(lambda: all(told(j).delivered_at for j in fast)):
            await asyncio.sleep(0.1)
        early = [told(j).delivered_at or told(j).error for j in slow]
        receiver.ended.set()  # they answer now
        await sending
        return early

    early = asyncio.run(scenario())
    assert early == [None] * 30 and all(told(j).delivered_at for j in [*fast, *slow])
    assert len(receiver.got) == 50


def test_asked_to_stop_it_begins_none(home, receiver):
    end(receiver.url())
    home.setattr(state, "should_stop", 0)
    webhooks.wake()
    assert receiver.got == []


def test_an_answer_that_cannot_be_written_leaves_the_delivery_to_its_lease(home, receiver, caplog):
    job_id = end(receiver.url())

    def broken(*_):
        raise OSError("the database is gone")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(webhooks, "_write", broken)
        webhooks.wake()
    assert told(job_id).delivered_at is None and told(job_id).lease_until and "broke off" in caplog.text
    with session() as s, s.begin():
        s.execute(update(Delivery).values(lease_until=now() - 1))
    webhooks.wake()
    assert told(job_id).delivered_at and len({g.headers["webhook-id"] for g in receiver.got}) == 1 and len(receiver.got) == 2
    assert json.loads(receiver.got[0].body) == json.loads(receiver.got[1].body)
