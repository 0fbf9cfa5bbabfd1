"""Stored bytes that have changed: no client accepts one of them, what has them is put under quarantine, and right bytes end that."""

from __future__ import annotations

import hashlib
import os
import random
import threading

import httpx
import pytest
from homes import KINDS, own_home
from sqlalchemy import select, update

from app import chunks, quarantine, scrub
from app.blobs import hold
from app.db import session
from app.models import Artifact, ArtifactFile, Blob, Meter
from app.storage import Storage, blob_key
from benchmarks.bit_flips import flip, flips


def upload(client: httpx.Client, data: bytes) -> dict:
    return client.post("/v1/artifacts", params={"name": "notes.txt"}, content=data).json()


pytestmark = pytest.mark.skipif(os.environ.get("MODELPRESS_TEST_STORAGE") == "s3", reason="bits are flipped in files")


@pytest.fixture(scope="module")
def large():
    return random.Random(4).randbytes(2 * chunks.CHUNK + 1234)


def test_fifty_flipped_bits_are_caught_before_a_client_accepts_them(api, large, model):
    assert flips(api.client("alice"), api.home / "store", 50, random.Random(5), {"model.safetensors": model(), "large.txt": large}) == 50


def test_the_digests_are_those_of_the_bytes_however_they_came(api, alice, large):
    made = upload(alice, large)
    with api.session() as s:
        kept = s.scalar(select(Blob.chunks).where(Blob.sha256 == made["files"][0]["sha256"]))
    assert kept == b"".join(hashlib.sha256(large[i : i + chunks.CHUNK]).digest() for i in range(0, len(large), chunks.CHUNK))
    resumed = os.urandom(chunks.CHUNK + 5)
    tus = {"Tus-Resumable": "1.0.0"}
    url = alice.post("/v1/uploads", headers=tus | {"Upload-Length": str(len(resumed)), "Upload-Metadata": "filename bS50eHQ="}).headers["location"]
    for at, end in ((0, 1000), (1000, len(resumed))):
        head = tus | {"Upload-Offset": str(at), "Content-Type": "application/offset+octet-stream"}
        assert alice.patch(url, headers=head, content=resumed[at:end]).status_code == 204
    with api.session() as s:
        kept = s.scalar(select(Blob.chunks).where(Blob.sha256 == hashlib.sha256(resumed).hexdigest()))
    assert kept == hashlib.sha256(resumed[: chunks.CHUNK]).digest() + hashlib.sha256(resumed[chunks.CHUNK :]).digest()


def test_a_quarantined_artifact_says_so_everywhere_and_recovers(api, alice, bob, model, problem, large):
    data = model(fill=b"\x07")
    made, theirs = (c.post("/v1/artifacts", params={"name": "m.safetensors"}, content=data).json() for c in (alice, bob))
    path = api.home / "store" / blob_key(made["files"][0]["sha256"])
    flip(path, 900)
    url = f"/v1/artifacts/{made['id']}"
    problem(alice.get(f"{url}/files/m.safetensors"), 500, "storage-damaged")
    for what in ("files/m.safetensors", "archive", "signature", "report"):
        assert "no longer what they were" in problem(alice.get(f"{url}/{what}"), 410, "quarantined")["detail"]
    assert alice.head(f"{url}/files/m.safetensors").status_code == 410
    assert "bytes 0 to" in alice.get(url).json()["quarantined"] and bob.get(f"/v1/artifacts/{theirs['id']}").json()["quarantined"]
    problem(alice.post("/v1/jobs", json={"input": made["id"], "preset": "lossless"}), 409, "upload-not-usable", "/input")
    folder = {"files": [{"path": "model.safetensors", "artifact": made["id"]}]}
    problem(alice.post("/v1/artifacts", json=folder), 409, "upload-not-usable", "/files/0/artifact")
    again = alice.post("/v1/artifacts", params={"name": "m.safetensors"}, content=data).json()
    for client, ident in ((alice, made["id"]), (alice, again["id"]), (bob, theirs["id"])):
        assert client.get(f"/v1/artifacts/{ident}/files/m.safetensors").content == data and client.get(f"/v1/artifacts/{ident}").json()["quarantined"] is None


@pytest.fixture(params=KINDS)
def store(request, tmp_path):
    with own_home(tmp_path, request.param, scrub_rate=str(1 << 40), storage_url=f"file://{tmp_path}/store"):
        yield Storage()


def put(storage: Storage, data: bytes, told: bool = True) -> str:
    sha256 = hashlib.sha256(data).hexdigest()
    digest = chunks.Chunked()
    digest.update(data)
    with session() as s, s.begin():
        hold(s, sha256, len(data), digest.chunks() if told else None)
        s.flush()
        artifact = Artifact(owner="o", kind="model", format="file", name="m", digest=sha256, size=len(data))
        artifact.files = [ArtifactFile(path="m", size=len(data), sha256=sha256)]
        s.add(artifact)
    storage.put(blob_key(sha256), [data])
    return sha256


def test_the_scrubber_finds_damage_and_its_end(store, large):
    names = [put(store, data) for data in (b"small", large, b"another")]
    old = put(store, large[:-1], told=False)  # of before digests were kept
    rotten = store.place.path / blob_key(names[1])
    flip(rotten, 8 * chunks.CHUNK + 3)

    def round_() -> set[str]:
        return {found[0] for found in iter(scrub.take, None) if not scrub.scrub(store, *found, lambda _: None)}

    assert round_() == {names[1]} and scrub.take() is None
    with session() as s:
        assert set(s.scalars(select(ArtifactFile.sha256).join(Artifact).where(Artifact.quarantined.is_not(None)))) == {names[1]}
        assert len(s.scalar(select(Blob.chunks).where(Blob.sha256 == old))) == 96
        assert {m.name: m.count for m in s.scalars(select(Meter))} == {"damage": 1, "scrubbed": len(b"smallanother") + 2 * len(large) - 1}
    flip(rotten, 8 * chunks.CHUNK + 3)
    with session() as s, s.begin():
        s.execute(update(Blob).values(checked_at=Blob.checked_at - scrub.AGAIN - 1))
    assert scrub.take() == (names[1], len(large)) and scrub.scrub(store, names[1], len(large), lambda _: None)
    with session() as s:
        assert s.scalars(select(Artifact.quarantined)).all() == [None] * 4
    store.delete(names[0])
    assert not scrub.scrub(store, names[0], 5, lambda _: None)


def test_the_scrubber_keeps_to_its_rate_and_ends(store, large, monkeypatch):
    put(store, large)
    monkeypatch.setattr(scrub.settings(), "scrub_rate", len(large))
    waits = []
    assert scrub.scrub(store, *scrub.take(), waits.append)
    assert waits == sorted(waits) and 0.5 < waits[-1] <= 1.0
    stopped = threading.Event()
    thread = threading.Thread(target=scrub.keep_scrubbing, args=[stopped])
    thread.start()
    stopped.set()
    thread.join(5)
    assert not thread.is_alive()


def test_an_artifact_with_two_damaged_blobs_waits_for_both(store):
    a, b = put(store, b"a"), put(store, b"b")
    with session() as s, s.begin():
        s.add(ArtifactFile(artifact_id=s.scalar(select(ArtifactFile.artifact_id).where(ArtifactFile.sha256 == a)), path="b", size=1, sha256=b))
    for sha256 in (a, b):
        quarantine.condemn(store, sha256, "a test")
    for healed, left in ((a, 2), (b, 0)):
        with session() as s, s.begin():
            quarantine.absolve(s, store, healed)
        with session() as s:
            assert len(s.scalars(select(Artifact.id).where(Artifact.quarantined.is_not(None))).all()) == left
