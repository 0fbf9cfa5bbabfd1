"""Uploads, compositions, lists and deletion, against a real process."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import pytest
from sqlalchemy import insert

from app.api_keys import create_key, new_key
from app.models import Artifact, ArtifactFile, Blob, Job


def digest_of(data: bytes, wrong: bool = False) -> str:
    return base64.b64encode(hashlib.sha256(data + b"x" * wrong).digest()).decode()


def upload(client, data: bytes, name: str = "model.safetensors", **headers) -> dict:
    response = client.post("/v1/artifacts", params={"name": name}, content=data, headers=headers)
    assert response.status_code == 201, response.text
    assert response.headers["location"] == f"/v1/artifacts/{response.json()['id']}"
    return response.json()


def pieces(data: bytes, step: int = 1000):
    """Sent chunked: the length is not announced."""
    for at in range(0, len(data), step):
        yield data[at : at + step]


def test_an_upload_is_described(alice, model):
    data = model()
    made = upload(alice, data)
    sha = hashlib.sha256(data).hexdigest()
    assert made["files"] == [{"path": "model.safetensors", "size": len(data), "sha256": sha}]
    assert made["digest"] == hashlib.sha256(f"model.safetensors {len(data)} {sha}\n".encode()).hexdigest()
    assert (made["size"], made["kind"], made["format"], made["name"], made["signed"]) == (len(data), "model", "safetensors", "model.safetensors", False)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", made["created_at"])
    assert alice.get(f"/v1/artifacts/{made['id']}").json() == made
    assert alice.get("/v1/artifacts", params={"limit": 1}).json()["items"] == [made]


def test_equal_uploads_share_their_bytes(api, alice, bob, model):
    data = model(fill=b"\x77")
    a, b = upload(alice, data), upload(bob, data)
    assert a["id"] != b["id"] and a["digest"] == b["digest"]
    assert sum(a["files"][0]["sha256"] in path for path in api.stored()) == 1
    with api.session() as s:
        assert s.get(Blob, a["files"][0]["sha256"]).size == len(data)


def test_a_chunked_upload_is_judged_too(api, alice, model, problem):
    before = api.stored()
    problem(alice.post("/v1/artifacts", params={"name": "m.safetensors"}, content=pieces(model()[:-1])), 422, "invalid-safetensors")
    assert api.stored() == before
    assert upload(alice, pieces(model()))["format"] == "safetensors"


@pytest.mark.parametrize("header, form", [("Repr-Digest", ":{}:"), ("Content-Digest", ":{}:"), ("Digest", "{}")])
def test_digests(api, alice, model, problem, header, form):
    data = model(fill=b"\x03")
    upload(alice, data, **{header: f"sha-256={form.format(digest_of(data))}"})
    upload(alice, data, **{header: f"sha-512={form.format('AAAA')}, sha-256={form.format(digest_of(data))}"})
    before = api.stored()
    new = model(fill=b"\x04")
    for content in (new, pieces(new)):
        response = alice.post("/v1/artifacts", params={"name": "m.safetensors"}, content=content, headers={header: f"sha-256={form.format(digest_of(new, wrong=True))}"})
        problem(response, 422, "checksum-mismatch")
    for value in ("sha-256=:zzz:", "sha-256=", "sha-256=:AAAA:", "rubbish", "", f"sha-256=:{digest_of(new)}"):
        response = alice.post("/v1/artifacts", params={"name": "m.safetensors"}, content=new, headers={header: value})
        problem(response, 400, "malformed-request")
    assert api.stored() == before


@pytest.mark.parametrize(
    "name, data, kind",
    [
        ("m.safetensors", b"", "invalid-safetensors"),
        ("m.safetensors", b"\xff" * 100, "invalid-safetensors"),
        ("m.safetensors", (1 << 62).to_bytes(8, "little") + b"{}", "invalid-safetensors"),
        ("m.onnx", b"\x08\x07", "unsupported-format"),
        ("m.pt", b"not a zip at all", "invalid-torch"),
        ("m.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "lfs-pointer"),
        ("m", b"#!/bin/sh\n", "unsupported-format"),
    ],
)
def test_what_is_no_model_leaves_nothing(api, alice, problem, name, data, kind):
    before = api.stored()
    problem(alice.post("/v1/artifacts", params={"name": name}, content=data), 422, kind)
    problem(alice.post("/v1/artifacts", params={"name": name}, content=pieces(data)), 422, kind)
    assert api.stored() == before


@pytest.mark.parametrize(
    "name, cleaned",
    [
        ("../../etc/x.safetensors", "x.safetensors"),
        ("/abs/y.safetensors", "y.safetensors"),
        ("C:\\z.safetensors", "z.safetensors"),
        ("a\x00b\r\nSet-Cookie: x.safetensors", "abSet-Cookie_ x.safetensors"),
        ("CON.safetensors", "_CON.safetensors"),
        ("evil\u202egpj.safetensors", "evilgpj.safetensors"),
        ("...safetensors", "safetensors"),
        ("m" * 4000 + ".safetensors", "m" * 243 + ".safetensors"),
        ('q"uo\'te.safetensors', "q_uo'te.safetensors"),
        ("e\u0301.safetensors", "\u00e9.safetensors"),
    ],
)
def test_names_are_cleaned(alice, model, name, cleaned):
    made = upload(alice, model(), name)
    assert made["name"] == cleaned == made["files"][0]["path"]
    response = alice.get(f"/v1/artifacts/{made['id']}/files/{cleaned}")
    disposition = response.headers["content-disposition"]
    assert response.content == model() and disposition.startswith("attachment; filename=\"") and disposition.isascii()
    assert "set-cookie" not in response.headers and response.headers["content-type"] == "application/octet-stream"


def test_a_name_is_needed_and_a_known_kind(alice, model, problem):
    problem(alice.post("/v1/artifacts", content=model()), 400, "malformed-request")
    problem(alice.post("/v1/artifacts", params={"name": "m.safetensors", "kind": "cat"}, content=model()), 400, "malformed-request")
    problem(alice.post("/v1/artifacts", params={"name": "m.safetensors"}, files={"file": model()}), 415, "unsupported-media-type")
    response = alice.post("/v1/artifacts", params={"name": "m.safetensors"}, content=model(), headers={"Content-Type": "application/x-www-form-urlencoded"})
    assert response.status_code == 201  # what curl --data-binary says


def compose(client, *parts, **more):
    return client.post("/v1/artifacts", json={"files": [{"path": p, "artifact": a} for p, a in parts]} | more)


def test_a_folder_is_composed_without_copying(api, alice, model):
    weights, config = upload(alice, model()), upload(alice, b'{"model_type": "llama"}', "config.json")
    assert config["format"] == "file"
    before = api.stored()
    made = compose(alice, ("sub/model.safetensors", weights["id"]), ("config.json", config["id"]), name="folder")
    assert made.status_code == 201 and api.stored() == before
    made = made.json()
    assert [f["path"] for f in made["files"]] == ["config.json", "sub/model.safetensors"]
    assert (made["name"], made["format"], made["size"]) == ("folder", "safetensors", weights["size"] + config["size"])
    lines = sorted(f"{f['path']} {f['size']} {f['sha256']}\n" for f in made["files"])
    assert made["digest"] == hashlib.sha256("".join(lines).encode()).hexdigest()
    for part in (weights, config):
        assert alice.delete(f"/v1/artifacts/{part['id']}").status_code == 204
    assert alice.get(f"/v1/artifacts/{made['id']}/files/sub/model.safetensors").content == model()


@pytest.mark.parametrize("path", ["../x", "/x", "a/../x", "a//x", "./x", "a\\x", "C:x", "x\n", "a" * 600, "x/", "\u202ex", "a/./b"])
def test_paths_are_strict(alice, model, problem, path):
    problem(compose(alice, (path, upload(alice, model())["id"])), 422, "invalid-path", "/files/0/path")


@pytest.mark.parametrize("paths", [("x", "x"), ("x", "X"), ("a/b", "A/B"), ("\u00e9", "e\u0301"), ("a", "a/b"), ("A/b", "a"), ("stra\u00dfe", "STRASSE")])
def test_paths_must_differ_everywhere(alice, model, problem, paths):
    ident = upload(alice, model())["id"]
    problem(compose(alice, *((p, ident) for p in paths)), 422, "invalid-path")


def test_a_composition_needs_weights_and_own_parts(alice, bob, model, problem):
    mine, config = upload(alice, model())["id"], upload(alice, b"{}", "config.json")["id"]
    problem(compose(alice, ("config.json", config)), 422, "no-tensors")
    theirs = upload(bob, model())["id"]
    foreign = problem(compose(alice, ("a", mine), ("b", theirs)), 404, "not-found", "/files/1/artifact")
    unknown = problem(compose(alice, ("a", mine), ("b", "00000000-0000-4000-8000-000000000000")), 404, "not-found", "/files/1/artifact")
    assert foreign == unknown
    folder = compose(alice, ("a.safetensors", mine), ("config.json", config)).json()["id"]
    problem(compose(alice, ("x", folder)), 422, "unsupported-format", "/files/0/artifact")
    problem(alice.post("/v1/artifacts", json={"files": []}), 422, "invalid-job-spec", "/files")
    problem(alice.post("/v1/artifacts", json={"files": [{"path": "a", "artifact": mine, "owner": "bob"}]}), 422, "invalid-job-spec", "/files/0/owner")


def test_lists_have_pages_that_nothing_shifts(api, serve_api, tmp_path, model, problem):
    with serve_api(tmp_path) as api, api.client() as c:
        made = [upload(c, model(fill=bytes([n])))["id"] for n in range(5)]
        seen, after = [], None
        for _ in range(3):
            page = c.get("/v1/artifacts", params={"limit": 2} | ({"cursor": after} if after else {})).json()
            seen += [a["id"] for a in page["items"]]
            after = page["next"]
            upload(c, model(fill=b"\x99"))  # newer than the cursor
        assert seen == made[::-1] and after is None
        for text in ("rubbish", "W10", "WzEsMl0", "%00", base64.urlsafe_b64encode(b'["x", "y"]').decode(), "e30"):
            problem(c.get("/v1/artifacts", params={"cursor": text}), 400, "invalid-cursor")
        for limit in (0, 501, "x"):
            problem(c.get("/v1/artifacts", params={"limit": limit}), 400, "malformed-request")
        other = c.get("/v1/artifacts", params={"limit": 2}).json()["next"]
        with api.client("bob") as b:  # a cursor is a place in one's own list, whoever made it
            assert b.get("/v1/artifacts", params={"cursor": other}).json() == {"items": [], "next": None}


def test_a_page_ends_before_it_has_too_many_files(api, model):
    api.keys["files"] = (key := new_key())
    with api.session() as s, s.begin():
        create_key(s, "files", key=key)
    counts = [15_000, 1, 2, 15_000, 25_000, 3]
    with api.client("files") as c:
        sha256 = upload(c, model())["files"][0]["sha256"]
        with api.session() as s, s.begin():
            for n, count in enumerate(counts):
                made = Artifact(id=f"{n:08}-0000-4000-8000-000000000000", owner="files", kind="model", format="safetensors", name="m", digest="d", size=1, created_at=n)
                s.add(made)
                s.flush()
                s.execute(insert(ArtifactFile), [{"artifact_id": made.id, "path": f"{i}", "size": 1, "sha256": sha256} for i in range(count)])
        pages, after = [], None
        while after or not pages:
            page = c.get("/v1/artifacts", params={"limit": 500} | ({"cursor": after} if after else {})).json()
            pages.append([len(a["files"]) for a in page["items"]])
            after = page["next"]
        assert pages == [[1, 3], [25_000], [15_000, 2, 1], [15_000]]


def test_deletion_waits_for_jobs_and_leaves_them(api, alice, model, problem):
    ident = upload(alice, model())["id"]
    job = alice.post("/v1/jobs", json={"input": ident, "preset": "lossless"}).json()
    problem(alice.delete(f"/v1/artifacts/{ident}"), 409, "in-use")
    assert alice.get(f"/v1/artifacts/{ident}").status_code == 200
    assert alice.post(f"/v1/jobs/{job['id']}/cancel").json()["state"] == "cancelled"
    assert alice.delete(f"/v1/artifacts/{ident}").status_code == 204
    problem(alice.get(f"/v1/artifacts/{ident}"), 404, "not-found")
    problem(alice.delete(f"/v1/artifacts/{ident}"), 404, "not-found")
    after = alice.get(f"/v1/jobs/{job['id']}").json()
    assert after["input"] == ident and after["state"] == "cancelled"
    with api.session() as s:
        assert s.get(Job, job["id"]).input_id is None


def test_strangers_get_what_the_unknown_gets(alice, bob, model):
    ident = upload(alice, model())["id"]
    unknown = "00000000-0000-4000-8000-000000000000"
    for method, path in [("GET", ""), ("DELETE", ""), ("GET", "/files/model.safetensors"), ("HEAD", "/files/model.safetensors"), ("GET", "/archive"), ("GET", "/signature"), ("GET", "/report")]:
        theirs, none = (bob.request(method, f"/v1/artifacts/{i}{path}", headers={"X-Request-Id": "same"}) for i in (ident, unknown))
        assert theirs.status_code == none.status_code == 404 and theirs.content == none.content, path
    assert alice.get(f"/v1/artifacts/{ident}").status_code == 200


def test_ids_that_are_none_are_unknown(alice, problem):
    for ident in ("' OR 1=1--", "..", "%2e%2e", "x" * 300, "%00"):
        assert alice.get(f"/v1/artifacts/{ident}/report").status_code == 404
    problem(alice.get("/v1/artifacts/1"), 404, "not-found")


def test_a_json_file_is_an_upload_when_it_is_named(alice):
    made = alice.post("/v1/artifacts", params={"name": "config.json"}, json={"files": "of a model"}).json()
    assert made["format"] == "file" and json.loads(alice.get(f"/v1/artifacts/{made['id']}/files/config.json").content) == {"files": "of a model"}


def test_an_artifact_says_when_it_expires_and_its_owner_may_change_it(alice, bob, model, problem):
    made = alice.post("/v1/artifacts", params={"name": "m.safetensors"}, content=model()).json()
    url = f"/v1/artifacts/{made['id']}"
    assert made["expires_at"] is None
    told = alice.patch(url, json={"expires_at": "2999-12-31T23:59:59+01:00"}).json()
    assert told["expires_at"] == "2999-12-31T22:59:59.000Z" == alice.get(url).json()["expires_at"] and told | {"expires_at": None} == made
    assert alice.patch(url, json={"expires_at": None}).json() == made
    problem(bob.patch(url, json={"expires_at": None}), 404, "not-found")
    for bad in ("2001-01-01T00:00:00Z", "tomorrow", "2999-02-30T00:00:00Z", "2999-01-01", "2999-01-01T00:00:00", "9999-12-31T23:59:59-14:00", "9999-12-31T23:59:59.999999Z"):
        problem(alice.patch(url, json={"expires_at": bad}), 422, "unprocessable", "/expires_at")
    problem(alice.patch(url, json={"expires_at": 5}), 422, "invalid-job-spec", "/expires_at")
    problem(alice.patch(url, json={}), 422, "invalid-job-spec", "/expires_at")
