"""Uploads straight into the bucket: a real API, a real store, clients that lie."""

from __future__ import annotations

import hashlib
import threading

import httpx
import pytest
from homes import own_home

from app import direct
from app.config import settings
from app.db import now, session
from app.direct import MAX_PARTS, MIN_PART, _lengths, part_size
from app.errors import REFUSALS
from app.models import Upload
from app.resumable import drop_expired
from app.storage import Storage


@pytest.fixture(scope="module")
def bucket(s3):
    return s3.bucket()


@pytest.fixture(scope="module")
def straight(s3, bucket, serve_api, tmp_path_factory):
    with serve_api(tmp_path_factory.mktemp("home"), storage_url=f"s3://{bucket}/store", presigned="true", max_upload_bytes=str(1 << 40)) as api:
        yield api


@pytest.fixture(scope="module")
def client(straight):
    with straight.client() as c:
        yield c


@pytest.fixture
def clean(s3, bucket):
    """Nothing is left behind but blobs."""
    yield
    assert s3.unfinished(bucket) == [] and [k for k in s3.objects(bucket) if "/blobs/" not in k] == []


def begin(client, data: bytes, name: str = "m.safetensors", **more) -> dict:
    r = client.post("/v1/direct-uploads", json={"name": name, "size": len(data)} | more)
    assert r.status_code == 201, r.text
    return r.json()


def send(begun: dict, data: bytes) -> None:
    for part in reversed(begun["parts"]):
        at = (part["number"] - 1) * begun["part_size"]
        assert httpx.put(part["url"], content=data[at : at + begun["part_size"]], headers=begun["headers"]).status_code == 200


@pytest.mark.parametrize("size", [1, MIN_PART, MIN_PART + 1, 100 * 10**9, 1 << 40, 5 << 40])
def test_parts_are_few_and_make_the_whole(size):
    lengths = _lengths(size)
    assert sum(lengths) == size and len(lengths) <= MAX_PARTS and {*lengths[:-1]} <= {part_size(size)} and part_size(size) <= (5 << 30) + (1 << 30)
    assert min(lengths[:-1], default=MIN_PART) >= 5 << 20 and lengths[-1] > 0


def test_a_file_goes_to_the_bucket_in_parts(client, straight, clean, model):
    data = model({"w.weight": ("F32", [4096, 4200])})
    assert len(data) > MIN_PART
    sha256 = hashlib.sha256(data).hexdigest()
    begun = begin(client, data, kind="model", sha256=sha256)
    assert len(begun["parts"]) == 2 and all("content-length" in p["url"] for p in begun["parts"])
    send(begun, data)
    done = client.post(f"/v1/direct-uploads/{begun['id']}/complete")
    assert done.status_code == 201 and done.headers["location"] == f"/v1/artifacts/{done.json()['id']}"
    assert done.json()["format"] == "safetensors" and done.json()["files"][0]["sha256"].endswith(sha256)
    assert client.post(f"/v1/direct-uploads/{begun['id']}/complete").json()["id"] == done.json()["id"]
    assert client.get(f"/v1/uploads/{begun['id']}").json()["artifact"] == done.json()["id"]
    assert client.get(f"/v1/artifacts/{done.json()['id']}/files/m.safetensors").content == data
    late = httpx.put(begun["parts"][0]["url"], content=b"x" * begun["part_size"])
    assert late.is_error and straight.storage.read(sha256) == data


def test_what_was_hashed_cannot_be_changed_afterwards(client, straight, clean, model):
    """The URLs of a multipart upload are void once it is complete; a blob never stands under an address that is not its own."""
    victim = model(fill=b"\x11")
    sha256 = hashlib.sha256(victim).hexdigest()
    client.post("/v1/artifacts", params={"name": "v.safetensors"}, content=victim)
    lie = begin(client, victim, sha256=sha256)
    send(lie, victim[:-1] + b"\x12")
    refused = client.post(f"/v1/direct-uploads/{lie['id']}/complete")
    assert (refused.status_code, refused.json()["type"]) == (422, "checksum-mismatch") and straight.storage.read(sha256) == victim
    again = client.post(f"/v1/direct-uploads/{lie['id']}/complete")
    assert (again.status_code, again.json()["type"]) == (422, "checksum-mismatch")


@pytest.mark.parametrize("data, name", [(b"\x80\x04cos\nsystem\n.", "m.pkl"), (b"\xff" * 64, "m.safetensors")])
def test_refused_bytes_are_deleted(client, s3, bucket, clean, data, name):
    begun = begin(client, data, name)
    send(begun, data)
    before = s3.objects(bucket)
    refused = client.post(f"/v1/direct-uploads/{begun['id']}/complete")
    assert refused.status_code == 422 and refused.json()["type"] in REFUSALS, refused.text
    assert s3.objects(bucket) == before
    assert client.get(f"/v1/uploads/{begun['id']}").json()["error"]["type"] == refused.json()["type"]


def test_missing_parts_can_still_be_sent(client, clean, model, problem):
    data = model(fill=b"\x21")
    begun = begin(client, data)
    for wrong in (None, data[:-1], data + b"x"):
        if wrong is not None:
            httpx.put(begun["parts"][0]["url"], content=wrong)
        assert problem(client.post(f"/v1/direct-uploads/{begun['id']}/complete"), 409, "conflict")["missing"] == [1]
    send(begun, data)
    assert client.post(f"/v1/direct-uploads/{begun['id']}/complete").status_code == 201


def test_one_of_several_completions_wins(straight, clean, model):
    data = model({"w.weight": ("F32", [1024, 1024])}, b"\x31")
    with straight.client() as c:
        begun = begin(c, data)
    send(begun, data)
    answers = []

    def ask():
        with straight.client() as c:
            answers.append(c.post(f"/v1/direct-uploads/{begun['id']}/complete"))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert {r.status_code for r in answers} <= {201, 423, 409} and len({r.json()["id"] for r in answers if r.status_code == 201}) == 1
    with straight.client() as c:
        assert len([a for a in c.get("/v1/artifacts", params={"limit": 100}).json()["items"] if a["size"] == len(data)]) == 1


def test_it_can_be_given_up_and_is_nobody_elses(client, straight, clean, model, problem):
    begun = begin(client, model())
    with straight.client("bob") as bob:
        for r in (bob.post(f"/v1/direct-uploads/{begun['id']}/complete"), bob.delete(f"/v1/direct-uploads/{begun['id']}")):
            problem(r, 404, "not-found")
    assert client.delete(f"/v1/direct-uploads/{begun['id']}").status_code == 204
    problem(client.post(f"/v1/direct-uploads/{begun['id']}/complete"), 404, "not-found")
    assert httpx.put(begun["parts"][0]["url"], content=model()).is_error


@pytest.mark.parametrize(
    "body, pointer",
    [({"name": "x"}, "/size"), ({"name": "x", "size": 0}, "/size"), ({"name": "x", "size": "1"}, "/size"), ({"name": "", "size": 1}, "/name"),
     ({"name": "x", "size": 1, "sha256": "AB"}, "/sha256"), ({"name": "x", "size": 1, "kind": "cat"}, "/kind"), ({"name": "x", "size": 1, "url": 1}, "/url")],
)  # fmt: skip
def test_bad_requests_say_where(client, problem, body, pointer):
    r = client.post("/v1/direct-uploads", json=body)
    assert problem(r, 422, r.json()["type"], pointer)


def test_a_file_that_is_too_large_is_refused_before_it_is_sent(client, problem):
    problem(client.post("/v1/direct-uploads", json={"name": "x", "size": (1 << 40) + 1}), 413, "payload-too-large", "/size")


def test_a_hundred_gigabytes_can_be_announced(client):
    r = client.post("/v1/direct-uploads", json={"name": "large.safetensors", "size": 100 * 10**9})
    assert r.status_code == 201 and len(r.json()["parts"]) <= MAX_PARTS and len(r.content) < 1 << 20
    assert client.delete(f"/v1/direct-uploads/{r.json()['id']}").status_code == 204


def test_not_offered_is_not_found(alice, problem):
    problem(alice.post("/v1/direct-uploads", json={"name": "x", "size": 1}), 404, "not-found")


def test_an_expired_one_is_swept(s3, tmp_path):
    bucket = s3.bucket()
    with own_home(tmp_path, storage_url=f"s3://{bucket}/x", presigned="true"):
        storage = Storage(settings().store)
        begun = direct.begin(storage, "alice", "m.safetensors", direct.DirectUpload(name="m", size=10))
        httpx.put(begun.urls[0], content=b"0123456789")
        assert drop_expired(storage) == 0 and len(s3.unfinished(bucket)) == 1
        with session() as s, s.begin():
            s.get_one(Upload, begun.id).expires_at = now() - 1
        assert drop_expired(storage) == 1 and s3.unfinished(bucket) == [] == s3.objects(bucket)
