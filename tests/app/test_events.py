"""A job's events: written with each change, and sent as server-sent events by a real API process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import uuid
from contextlib import contextmanager

import httpx
import pytest
from httpx_sse import connect_sse
from sqlalchemy import select, update

from app import events, jobs
from app.client import Client
from app.errors import NoSpace
from app.models import Job, JobEvent


@pytest.fixture(scope="module")
def artifact(alice, model) -> str:
    return alice.post("/v1/artifacts", params={"name": "m.safetensors"}, content=model()).json()["id"]


@pytest.fixture
def job(api, alice, artifact) -> str:
    """A queued job in a queue of its own, so that a claim takes no other."""
    ident = alice.post("/v1/jobs", json={"input": artifact, "preset": "lossless"}).json()["id"]
    with api.session() as s, s.begin():
        s.execute(update(Job).where(Job.id == ident).values(queue=ident[:20]))
    return ident


def do(api, step, *args, **more):
    with api.session() as s, s.begin():
        return step(s, *args, **more)


def rows(api, job) -> list[JobEvent]:
    with api.session() as s:
        return list(s.scalars(select(JobEvent).where(JobEvent.job_id == job).order_by(JobEvent.seq)))


def told(fraction: float, stage: str = "compress") -> dict:
    return {"stage": stage, "fraction": fraction, "bytes_done": int(100 * fraction), "bytes_total": 100}


@contextmanager
def watching(client, job, **more):
    with connect_sse(client, "GET", f"/v1/jobs/{job}/events", **more) as source:
        source.response.raise_for_status()
        yield (e for e in source.iter_sse() if e.data)


def seen(client, job, **more) -> list[tuple[int, str, dict]]:
    with watching(client, job, **more) as stream:
        return [(int(e.id), e.event, json.loads(e.data)) for e in stream]


def test_a_job_is_followed_from_its_first_event_to_its_last(api, alice, job):
    with watching(alice, job) as stream:
        first = next(stream)
        assert (first.id, first.event, json.loads(first.data)["state"]) == ("1", "state", "queued")
        claimed = do(api, jobs.claim, job[:20])
        assert json.loads(next(stream).data)["attempt"] == 1
        assert do(api, jobs.heartbeat, job, claimed.fence, progress=told(0.25))
        step = next(stream)
        assert step.event == "progress" and json.loads(step.data).items() >= told(0.25).items()
        assert do(api, jobs.requeue, job, claimed.fence, why="its child ended with code -11")
        line, back = next(stream), next(stream)
        if line.event == "state":
            line, back = back, line
        assert line.event == "log" and "code -11" in json.loads(line.data)["message"] and json.loads(back.data)["state"] == "queued"
        do(api, jobs.cancel, job)
        last = next(stream)
        assert json.loads(last.data)["state"] == "cancelled" and json.loads(last.data)["at"].endswith("Z")
        assert next(stream, None) is None
    assert [r.seq for r in rows(api, job)] == list(range(1, 7))


def test_a_client_that_comes_again_misses_nothing(api, alice, job):
    claimed = do(api, jobs.claim, job[:20])
    for i in range(230):  # more than are read at once
        do(api, jobs.heartbeat, job, claimed.fence, progress=told(0.5, f"stage {i}"))
    do(api, jobs.fail, job, claimed.fence, {"type": "no-space", "title": "t", "status": 507, "detail": "d"})
    whole = seen(alice, job)
    assert [i for i, _, _ in whole] == list(range(1, 234)) and whole[-1][2]["error"]["type"] == "no-space"
    assert seen(alice, job, headers={"Last-Event-ID": "200"}) == whole[200:]
    assert seen(alice, job, params={"last_event_id": "232"}) == whole[232:]
    assert seen(alice, job, params={"last_event_id": "3"}, headers={"Last-Event-ID": "231"}) == whole[231:]  # a browser's own word is the newer one
    again = alice.get(f"/v1/jobs/{job}/events", headers={"Last-Event-ID": "233"})
    assert again.status_code == 204 and not again.content


@pytest.mark.parametrize("bad", ["x", "-1", "1.0", "2", "9" * 20, "9" * 30, "", "١"])
def test_an_id_of_no_event(alice, job, problem, bad):
    if bad.isascii() and bad:
        problem(alice.get(f"/v1/jobs/{job}/events", headers={"Last-Event-ID": bad}), 400, "malformed-request")
    if bad:
        problem(alice.get(f"/v1/jobs/{job}/events", params={"last_event_id": bad}), 400, "malformed-request")
    else:
        with watching(alice, job, params={"last_event_id": bad}) as stream:
            assert next(stream).id == "1"


def test_strangers_see_nothing(bob, nobody, job, problem):
    problem(bob.get(f"/v1/jobs/{job}/events"), 404, "not-found")
    problem(bob.get(f"/v1/jobs/{uuid.uuid4()}/events"), 404, "not-found")
    problem(nobody.get(f"/v1/jobs/{job}/events"), 401, "unauthorized")


def test_what_did_not_happen_is_not_told(api, job):
    before = len(rows(api, job))
    claimed = do(api, jobs.claim, job[:20])
    assert not do(api, jobs.heartbeat, job, claimed.fence + 1, progress=told(0.5))
    assert not do(api, jobs.fail, job, claimed.fence + 1, {"type": "x"})
    with api.session() as s, s.begin() as transaction:
        jobs.fail(s, job, claimed.fence, {"type": "x"})
        transaction.rollback()
    assert [r.data["state"] for r in rows(api, job)[before:]] == ["running"]


def test_progress_leaves_a_hundred_rows_at_most(api, job, monkeypatch):
    monkeypatch.setattr(events, "PAUSE", 0.0)
    claimed = do(api, jobs.claim, job[:20])
    with api.session() as s, s.begin():
        for stage in ("fetch", "compress"):
            for i in range(401):
                jobs.heartbeat(s, job, claimed.fence, progress=told(i / 400, stage))
    found = [r.data["fraction"] for r in rows(api, job) if r.kind == "progress"]
    assert 80 < len(found) <= 102 and found[0] == 0.0
    monkeypatch.setattr(events, "MOST", 120)
    with api.session() as s, s.begin():
        for i in range(100):  # a child that names another stage each time
            jobs.heartbeat(s, job, claimed.fence, progress=told(0.5, f"stage {i}"))
    do(api, jobs.cancel, job)
    assert [r.seq for r in rows(api, job)] == list(range(1, 122)) and rows(api, job)[-1].data["state"] == "cancelled"


def test_a_thousand_watch(api, alice, job):
    """Each over a connection of its own; some go away without a word, one reads nothing until the end."""
    request = f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.keys['alice']}\r\n\r\n".encode()
    connections = []
    try:
        for _ in range(1000):
            c = socket.create_connection(("127.0.0.1", api.port), timeout=60)
            c.sendall(request)
            connections.append(c)
        for c in connections[1:]:
            _read_until(c, b"id: 1\n")
        for c in connections[1:100]:
            c.close()
        claimed = do(api, jobs.claim, job[:20])
        assert alice.get("/healthz").status_code == 200
        do(api, jobs.fail, job, claimed.fence, {"type": "no-space", "title": "t", "status": 507, "detail": "d"})
        for c in [connections[0], *connections[100:]]:
            text = _read_until(c, b"0\r\n\r\n")  # the last chunk: the server has ended the stream
            assert b'"state": "failed"' in text and b"id: 3\n" in text
    finally:
        for c in connections:
            c.close()


def _read_until(c: socket.socket, mark: bytes) -> bytes:
    text = b""
    while mark not in text:
        data = c.recv(1 << 16)
        assert data, f"the stream ended early: {text[-300:]!r}"
        text += data
    return text


def test_a_server_that_stops_ends_its_streams(serve_api, tmp_path, model):
    with serve_api(tmp_path) as api, api.client() as c:
        ident = c.post("/v1/artifacts", params={"name": "m.safetensors"}, content=model()).json()["id"]
        job = c.post("/v1/jobs", json={"input": ident, "preset": "lossless"}).json()["id"]
        with watching(c, job) as stream:
            assert next(stream).id == "1"
            os.kill(api.pid, signal.SIGTERM)
            assert list(stream) == []  # a whole response, not a broken connection


class Cut(httpx.SyncByteStream):
    """A response whose connection breaks after its first event."""

    def __init__(self, stream):
        self.stream = stream

    def __iter__(self):
        text = b""
        for piece in self.stream:
            yield piece
            if b"\nid:" in (text := text + piece):
                raise httpx.ReadError("the connection broke")

    def close(self):
        self.stream.close()


def test_the_client_takes_up_where_it_was(api, alice, job):
    class Breaking(httpx.HTTPTransport):
        sent: list[str] = []

        def handle_request(self, request):
            response = super().handle_request(request)
            self.sent.append(request.headers["last-event-id"])
            return httpx.Response(response.status_code, headers=response.headers, stream=Cut(response.stream)) if len(self.sent) < 3 else response

    claimed = do(api, jobs.claim, job[:20])
    do(api, jobs.heartbeat, job, claimed.fence, progress=told(0.5))
    do(api, events.log, job, "a line")
    do(api, jobs.cancel, job)
    with Client(api.url, api.keys["alice"]) as c:
        c.http = httpx.Client(base_url=c.http.base_url, headers=c.http.headers, transport=Breaking())
        found = list(c.events(job))
    assert [e["kind"] for e in found] == ["state", "state", "progress", "log", "state"] and found[-1]["state"] == "cancelled"
    assert Breaking.sent[0] == "0" and len(Breaking.sent) == 4


def test_a_command_watches_to_the_end(api, job):
    claimed = do(api, jobs.claim, job[:20])
    do(api, events.log, job, "a line")
    do(api, jobs.fail, job, claimed.fence, NoSpace("the disk is full"))
    command = [sys.executable, "-m", "app.cli", "jobs", "watch", job, "--url", api.url]
    done = subprocess.run(command, env=os.environ | {"MODELPRESS_API_KEY": api.keys["alice"]}, capture_output=True, text=True)
    assert done.returncode == 1 and "a line" in done.stderr and "the disk is full [no-space]" in done.stderr


def test_writers_at_once_leave_no_gap(api, job):
    def write(name: str) -> None:
        for i in range(25):
            do(api, events.log, job, f"{name} {i}")

    threads = [threading.Thread(target=write, args=[f"writer {n}"]) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    found = rows(api, job)
    assert [r.seq for r in found] == list(range(1, 102)) and len({r.data["message"] for r in found if r.kind == "log"}) == 100
