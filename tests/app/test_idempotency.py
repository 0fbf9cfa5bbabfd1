"""`Idempotency-Key` on `POST /v1/jobs`: one request, one job, however often it is sent."""

from __future__ import annotations

import json
import threading
import uuid

import httpx
import pytest
from sqlalchemy import func, select, update

from app import idempotency
from app.client import Client
from app.models import IdempotencyKey, Job


@pytest.fixture(scope="module")
def artifact(alice, model) -> str:
    return alice.post("/v1/artifacts", params={"name": "m.safetensors"}, content=model()).json()["id"]


def submit(client, artifact, key, **spec):
    return client.post("/v1/jobs", json={"input": artifact, "preset": "lossless"} | spec, headers={"Idempotency-Key": key})


def count(api) -> int:
    with api.session() as s:
        return s.scalar(select(func.count()).select_from(Job))


def test_sent_again_it_gets_the_first_answer(api, alice, artifact, problem):
    key = str(uuid.uuid4())
    first, before = submit(alice, artifact, key, seed=1), count(api)
    text = f'{{ "seed": 1, "preset": "lossless",\n "input": "{artifact}" }}'  # the same body, written otherwise
    again = alice.post("/v1/jobs", content=text, headers={"Idempotency-Key": key, "Content-Type": "application/json"})
    assert (first.status_code, again.status_code) == (202, 202) and first.json() == again.json() and count(api) == before
    assert "idempotency-replayed" not in first.headers and again.headers["idempotency-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    problem(submit(alice, artifact, key, seed=2), 422, "idempotency-key-reused")
    alice.post(f"/v1/jobs/{first.json()['id']}/cancel")
    assert submit(alice, artifact, key, seed=1).json()["state"] == "cancelled"  # the job as it is now


def test_it_is_answered_when_the_input_is_gone(alice, model, problem):
    ident = alice.post("/v1/artifacts", params={"name": "m.safetensors"}, content=model()).json()["id"]
    job = submit(alice, ident, key := str(uuid.uuid4())).json()["id"]
    alice.post(f"/v1/jobs/{job}/cancel")
    assert alice.delete(f"/v1/artifacts/{ident}").status_code == 204
    assert submit(alice, ident, key).json()["id"] == job
    problem(submit(alice, ident, str(uuid.uuid4())), 404, "not-found")


def test_keys_are_of_one_owner(alice, bob, artifact, model):
    key, theirs = str(uuid.uuid4()), bob.post("/v1/artifacts", params={"name": "m.safetensors"}, content=model()).json()["id"]
    mine = submit(alice, artifact, key)
    other = submit(bob, theirs, key)
    assert other.status_code == 202 and other.json()["id"] != mine.json()["id"] and "idempotency-replayed" not in other.headers


def test_a_refused_request_leaves_its_key_free(alice, artifact, problem):
    key = str(uuid.uuid4())
    problem(submit(alice, artifact, key, preset="w5"), 422, "invalid-job-spec")
    assert submit(alice, artifact, key).status_code == 202


@pytest.mark.parametrize("key", ["", "x" * 256, b"\x80", b"caf\xc3\xa9", "a\tb"])
def test_keys_that_are_none(alice, artifact, problem, key):
    problem(submit(alice, artifact, key), 400, "malformed-request")


def test_two_at_once_make_one_job(api, artifact):
    answers, barrier, key = [], threading.Barrier(8), str(uuid.uuid4())

    def send():
        with api.client("alice") as c:
            c.get("/healthz")
            barrier.wait()
            answers.append(submit(c, artifact, key, seed=77))

    before = count(api)
    threads = [threading.Thread(target=send) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert [a.status_code for a in answers] == [202] * 8 and len({a.json()["id"] for a in answers}) == 1
    assert sum("idempotency-replayed" in a.headers for a in answers) == 7 and count(api) == before + 1


def test_a_key_counts_for_a_day(api, alice, artifact):
    old, young = str(uuid.uuid4()), str(uuid.uuid4())
    first = submit(alice, artifact, old).json()["id"]
    submit(alice, artifact, young)
    with api.session() as s, s.begin():
        s.execute(update(IdempotencyKey).where(IdempotencyKey.key == old).values(created_at=IdempotencyKey.created_at - 86_401))
    assert submit(alice, artifact, old, seed=5).json()["id"] != first  # nobody has swept yet
    with api.session() as s, s.begin():
        s.execute(update(IdempotencyKey).where(IdempotencyKey.key == old).values(created_at=IdempotencyKey.created_at - 86_401))
        assert idempotency.forget_old(s) == 1
        left = set(s.scalars(select(IdempotencyKey.key)))
    assert young in left and old not in left


def test_the_client_sends_again_what_got_no_answer(api, artifact):
    """The first answer is lost on its way."""
    sent = []

    class Lossy(httpx.HTTPTransport):
        def handle_request(self, request):
            response = super().handle_request(request)
            sent.append((request.headers.get("idempotency-key"), response.status_code))
            if len(sent) == 1:
                response.close()
                raise httpx.ReadError("the connection broke")
            return response

    before = count(api)
    with Client(api.url, api.keys["alice"]) as c:
        c.http = httpx.Client(base_url=c.http.base_url, headers=c.http.headers, transport=Lossy())
        job = c.submit(artifact, preset="lossless", seed=91)
    assert len(sent) == 2 and sent[0] == sent[1] and sent[0][0] and count(api) == before + 1
    assert json.dumps(job) and job["seed"] == 91
