"""Secrets and deliveries over HTTP, and what a job says of its webhook."""

from __future__ import annotations

import uuid

import pytest
from sqlalchemy import select, update

from app.models import Delivery, Job

URL = "https://hooks.example/modelpress"


@pytest.fixture(scope="module")
def artifact(alice, model) -> str:
    return alice.post("/v1/artifacts", params={"name": "m.safetensors"}, content=model()).json()["id"]


def submit(client, artifact, **more):
    return client.post("/v1/jobs", json={"input": artifact, "preset": "lossless"} | more)


@pytest.fixture
def ended(api, alice, artifact) -> str:
    job = submit(alice, artifact, webhook={"url": URL}).json()["id"]
    assert alice.post(f"/v1/jobs/{job}/cancel").status_code == 200
    return job


def test_a_job_keeps_its_webhook_beside_its_spec(api, alice, artifact):
    job = submit(alice, artifact, webhook={"url": URL}).json()
    assert job["webhook"] == {"url": URL} and submit(alice, artifact).json()["webhook"] is None
    with api.session() as s:
        rows = {j.id: j for j in s.scalars(select(Job).where(Job.owner == "alice"))}
    assert rows[job["id"]].webhook == {"url": URL} and "webhook" not in rows[job["id"]].spec
    plain = submit(alice, artifact).json()["id"]
    with api.session() as s:
        assert s.get_one(Job, plain).cache_key == rows[job["id"]].cache_key


@pytest.mark.parametrize("url", ["http://127.0.0.1/", "http://[::1]/", "ftp://hooks.example/", "https://user:password@hooks.example/", "https://hooks.example:22/", "", "x" * 3000])
def test_a_webhook_that_leads_nowhere_good(alice, artifact, problem, url):
    problem(submit(alice, artifact, webhook={"url": url}), 422, "webhook-not-allowed", "/webhook/url")


@pytest.mark.parametrize("webhook, pointer", [({}, "/webhook/url"), ({"url": 5}, "/webhook/url"), ({"url": URL, "secret": "x"}, "/webhook/secret"), (URL, "/webhook"), ([], "/webhook")])
def test_a_webhook_that_is_none(alice, artifact, problem, webhook, pointer):
    problem(submit(alice, artifact, webhook=webhook), 422, "invalid-job-spec", pointer)


def test_secrets(alice, bob, nobody, problem):
    first = alice.get("/v1/webhooks/secret")
    assert first.status_code == 200 and first.headers["cache-control"] == "no-store" and first.json()["secret"].startswith("whsec_")
    assert first.json()["previous_until"] is None and alice.get("/v1/webhooks/secret").json() == first.json() != bob.get("/v1/webhooks/secret").json()
    rotated = alice.post("/v1/webhooks/secret/rotate").json()
    assert rotated["secret"] != first.json()["secret"] and rotated["previous_until"] > rotated["created_at"]
    assert alice.get("/v1/webhooks/secret").json() == rotated
    for method, path in (("GET", "/secret"), ("POST", "/secret/rotate"), ("GET", "/deliveries"), ("POST", f"/deliveries/{uuid.uuid4()}/retry")):
        problem(nobody.request(method, f"/v1/webhooks{path}"), 401, "unauthorized")


def test_deliveries_are_listed_and_retried(api, alice, bob, ended, problem):
    (d,) = [d for d in alice.get("/v1/webhooks/deliveries").json()["items"] if d["job"] == ended]
    assert (d["type"], d["url"], d["state"], d["attempt"], d["error"], d["delivered_at"]) == ("job.cancelled", URL, "pending", 0, None, None) and d["due_at"]
    with api.session() as s, s.begin():
        s.execute(update(Delivery).where(Delivery.id == d["id"]).values(due_at=None, attempt=10, error="the answer was 500"))
    assert [x["state"] for x in alice.get("/v1/webhooks/deliveries").json()["items"] if x["id"] == d["id"]] == ["failed"]
    retried = alice.post(f"/v1/webhooks/deliveries/{d['id']}/retry")
    assert retried.status_code == 202 and (retried.json()["state"], retried.json()["id"]) == ("pending", d["id"]) and retried.json()["due_at"]
    with api.session() as s, s.begin():
        s.execute(update(Delivery).where(Delivery.id == d["id"]).values(due_at=None, delivered_at=1.5))
    assert [x["state"] for x in alice.get("/v1/webhooks/deliveries").json()["items"] if x["id"] == d["id"]] == ["delivered"]
    assert d["id"] not in bob.get("/v1/webhooks/deliveries").text
    unknown = problem(bob.post(f"/v1/webhooks/deliveries/{uuid.uuid4()}/retry"), 404, "not-found")
    assert problem(bob.post(f"/v1/webhooks/deliveries/{d['id']}/retry"), 404, "not-found") == unknown


def test_deliveries_in_pages(alice, artifact):
    for _ in range(5):
        alice.post(f"/v1/jobs/{submit(alice, artifact, webhook={'url': URL}).json()['id']}/cancel")
    everything, cursor, seen = alice.get("/v1/webhooks/deliveries", params={"limit": 500}).json()["items"], None, []
    while True:
        page = alice.get("/v1/webhooks/deliveries", params={"limit": 2} | ({"cursor": cursor} if cursor else {})).json()
        seen += page["items"]
        if (cursor := page["next"]) is None:
            break
    assert [d["id"] for d in seen] == [d["id"] for d in everything] and len({d["id"] for d in seen}) == len(seen) >= 5
