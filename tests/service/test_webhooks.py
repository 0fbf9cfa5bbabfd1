"""Webhooks of a whole service (the one that may be killed: its settings let them go to this machine), told by its own process, also when that is killed in the middle."""

from __future__ import annotations

import time

import psutil
import pytest
from receiver import receiving
from service.running import Service, model
from standardwebhooks import Webhook


@pytest.fixture(scope="module")
def small(fragile) -> str:
    return fragile.upload(model(1, seed=8))


@pytest.fixture
def receiver():
    with receiving() as r:
        yield r


def delivery(s: Service, job: str) -> dict:
    with s.http() as c:
        return next(d for d in c.get("/v1/webhooks/deliveries", params={"limit": 500}).json()["items"] if d["job"] == job)


def until(s: Service, job: str, state: str, seconds: float = 30) -> dict:
    end = time.monotonic() + seconds
    while (told := delivery(s, job))["state"] != state:
        assert time.monotonic() < end, told
        time.sleep(0.1)
    return told


def test_how_a_job_ended_is_told(fragile, small, receiver):
    done = fragile.submit(small, preset="lossless", webhook={"url": receiver.url("/ok")}, tags={"run": "1"})["id"]
    again = fragile.finish(done) and fragile.submit(small, preset="lossless", webhook={"url": receiver.url("/cached")})["id"]
    failed = fragile.submit(small, preset="lossless", gates={"max_bytes": 1}, webhook={"url": receiver.url("/gate")})["id"]
    with fragile.http() as c:
        secret = c.get("/v1/webhooks/secret").json()["secret"]
    events = {g.path: Webhook(secret).verify(g.body, g.headers) for g in receiver.wait(3)}
    assert {p: (e["type"], e["data"]["id"]) for p, e in events.items()} == {
        "/ok": ("job.succeeded", done), "/cached": ("job.succeeded", again), "/gate": ("job.failed", failed),
    }  # fmt: skip
    assert events["/ok"]["data"]["output"] == fragile.job(done)["output"] and events["/ok"]["data"]["tags"] == {"run": "1"}
    assert events["/gate"]["data"]["error"]["type"] == "gate-failed" and events["/cached"]["data"]["cached"]
    assert all(until(fragile, j, "delivered")["attempt"] == 1 for j in (done, again, failed))


def test_a_refusal_is_tried_again(fragile, small, receiver):
    job = fragile.submit(small, preset="lossless", seed=1, webhook={"url": receiver.url("/flaky/1")})["id"]
    first, second = receiver.wait(2)
    assert first.headers["webhook-id"] == second.headers["webhook-id"] and first.body == second.body
    assert until(fragile, job, "delivered")["attempt"] == 2


def test_what_a_killed_process_was_sending_is_sent_again(fragile, small, receiver):
    job = fragile.submit(small, preset="lossless", seed=2, webhook={"url": receiver.url("/slow")})["id"]
    receiver.wait(1)
    fragile.kill("webhooks")
    receiver.ended.set()  # from now on it answers
    first, again = receiver.wait(2)[:2]
    assert first.headers["webhook-id"] == again.headers["webhook-id"] == until(fragile, job, "delivered")["id"]


def test_a_receiver_that_is_slow_or_gone_holds_up_no_job(fragile, small, receiver):
    slow = [fragile.submit(small, preset="lossless", seed=10 + i, webhook={"url": receiver.url("/slow")})["id"] for i in range(6)]
    ended = [fragile.finish(j)["state"] for j in slow]
    told = fragile.submit(small, preset="lossless", seed=3, webhook={"url": receiver.url("/ok", "localhost")})["id"]
    assert ended == ["succeeded"] * 6 and fragile.finish(told) and until(fragile, told, "delivered")
    assert all(delivery(fragile, j)["state"] == "pending" for j in slow)


def test_a_retry_is_sent_at_once(fragile, small, receiver):
    job = fragile.submit(small, preset="lossless", seed=4, webhook={"url": receiver.url("/410")})["id"]
    receiver.wait(1)
    gone = until(fragile, job, "failed")
    assert gone["error"] == "the answer was 410"
    with fragile.http() as c:
        assert c.post(f"/v1/webhooks/deliveries/{gone['id']}/retry").status_code == 202
    first, second = receiver.wait(2)
    assert first.headers["webhook-id"] == second.headers["webhook-id"] == gone["id"]


def test_the_process_loads_neither_torch_nor_the_key(fragile):
    process = psutil.Process(fragile.pid("webhooks"))
    maps = " ".join(m.path for m in process.memory_maps())
    assert "libtorch" not in maps and "numpy" not in maps and "obstore" not in maps
