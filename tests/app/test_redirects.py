"""Downloads that are sent on to the bucket: through a real API, a real store, curl and the client."""

from __future__ import annotations

import base64
import hashlib
import subprocess
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from app.client import Client
from app.config import Settings
from app.errors import ChecksumMismatch, Quarantined, StorageDamaged
from app.storage import Storage, blob_key


@pytest.fixture(scope="module")
def redirecting(s3, serve_api, tmp_path_factory):
    with serve_api(tmp_path_factory.mktemp("home"), storage_url=f"s3://{s3.bucket()}/store", redirect_downloads="true") as api:
        yield api


@pytest.fixture(scope="module")
def uploaded(redirecting, model):
    data = model({"w.weight": ("F32", [512, 700])})
    with redirecting.client() as c:
        return c.post("/v1/artifacts", params={"name": "mödel.safetensors"}, content=data).json(), data


def _path(artifact: dict) -> str:
    return f"/v1/artifacts/{artifact['id']}/files/{artifact['files'][0]['path']}"


def test_a_file_is_sent_on_and_nothing_else(redirecting, uploaded, s3):
    artifact, data = uploaded
    digest = hashlib.sha256(data)
    with redirecting.client() as c:
        r = c.get(_path(artifact), headers={"Range": "bytes=5-9"})
        assert r.status_code == 307 and r.headers["location"].startswith(s3.url) and r.content == b""
        assert r.headers["repr-digest"] == f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"
        assert r.headers["etag"] == f'"{digest.hexdigest()}"' and "no-store" in r.headers["cache-control"]
        asked = parse_qs(urlsplit(r.headers["location"]).query)
        assert 0 < int(asked["X-Amz-Expires"][0]) <= 300 and asked["X-Amz-Signature"]
        assert asked["response-content-type"] == ["application/octet-stream"] and "filename*=UTF-8''m%C3%B6del" in asked["response-content-disposition"][0]
        head = c.head(_path(artifact))
        assert head.status_code == 200 and head.headers["content-length"] == str(len(data)) and head.headers["repr-digest"] == r.headers["repr-digest"]
        assert c.get(_path(artifact), headers={"If-None-Match": r.headers["etag"]}).status_code == 304
        archive = c.get(f"/v1/artifacts/{artifact['id']}/archive")
        assert archive.status_code == 200 and data in archive.content
    with redirecting.client("bob") as c:
        assert c.get(_path(artifact)).status_code == 404
    assert httpx.get(redirecting.url + _path(artifact)).status_code == 401


def test_whoever_follows_gets_the_bytes(redirecting, uploaded, tmp_path):
    artifact, data = uploaded
    with redirecting.client(follow_redirects=True) as c:
        assert c.get(_path(artifact)).content == data
        part = c.get(_path(artifact), headers={"Range": "bytes=5-9"})
        assert (part.status_code, part.content) == (206, data[5:10])
    key = f"Authorization: Bearer {redirecting.keys['alice']}"
    curl = ["curl", "-sfL", "-H", key, "-o", tmp_path / "f", redirecting.url + _path(artifact)]
    subprocess.run(curl, check=True)
    assert (tmp_path / "f").read_bytes() == data
    with Client(redirecting.url, redirecting.keys["alice"]) as c:
        c.download(artifact["id"], tmp_path / "folder")
    assert [p.read_bytes() for p in (tmp_path / "folder").iterdir()] == [data]


def test_the_key_does_not_go_to_the_store(redirecting, uploaded):
    seen = []
    with redirecting.client(follow_redirects=True, event_hooks={"request": [lambda r: seen.append((r.url.port, "authorization" in r.headers))]}) as c:
        c.get(_path(uploaded[0]))
    assert [with_key for _, with_key in seen] == [True, False] and seen[0][0] != seen[1][0]


def test_bytes_that_have_changed_are_found_by_the_client(redirecting, model, tmp_path):
    def damaged(fill: bytes, damage) -> str:
        data = model(fill=fill)
        with redirecting.client() as c:
            artifact = c.post("/v1/artifacts", params={"name": "m.safetensors"}, content=data).json()["id"]
        damage(blob_key(hashlib.sha256(data).hexdigest()), data)
        return artifact

    storage = redirecting.storage
    changed = damaged(b"\x07", lambda key, data: storage.put(key, [data[:-1] + b"\x08"]))
    shorter = damaged(b"\x08", lambda key, data: storage.put(key, [data[:-1]]))
    gone = damaged(b"\x09", lambda key, data: storage.delete(key.rpartition("/")[2]))
    with Client(redirecting.url, redirecting.keys["alice"]) as c:
        with pytest.raises(ChecksumMismatch):
            c.download(changed, tmp_path / "a")
        for artifact in (shorter, gone):
            with pytest.raises(StorageDamaged):
                c.download(artifact, tmp_path / "b")
        with pytest.raises(Quarantined):  # it is known by then
            c.download(shorter, tmp_path / "b")
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_the_store_may_have_another_name_for_clients(s3, monkeypatch):
    monkeypatch.setenv("MODELPRESS_STORAGE_PUBLIC_ENDPOINT", "https://models.example.com")
    monkeypatch.setattr("app.storage.bucket.settings", Settings)
    storage = Storage(f"s3://{s3.bucket()}/store")
    assert storage.place.public.url("x", 60).startswith("https://models.example.com/")


@pytest.mark.parametrize("name", ["redirect_downloads", "presigned"])
def test_only_a_bucket_can_be_redirected_to(name):
    with pytest.raises(ValueError, match="need MODELPRESS_STORAGE_URL=s3://"):
        Settings(**{name: True})
