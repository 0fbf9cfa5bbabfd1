"""Short-lived links: each opens exactly its path, for its owner, until it expires."""

from __future__ import annotations

import time
import uuid
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from httpx_sse import connect_sse
from sqlalchemy import update

from app import links
from app.api_keys import create_key, new_key
from app.models import Artifact, Secret


@pytest.fixture(scope="module")
def data(model) -> bytes:
    return model()


@pytest.fixture
def artifact(alice, data) -> str:
    return alice.post("/v1/artifacts", params={"name": "m.safetensors"}, content=data).json()["id"]


def link(client, noun: str, ident: str, path: str, **more):
    return client.post(f"/v1/{noun}/{ident}/link", json={"path": path} | more)


def test_a_link_opens_a_file_without_a_key(alice, nobody, artifact, data, problem):
    made = link(alice, "artifacts", artifact, "files/m.safetensors", expires_in=60)
    url = made.json()["url"]
    assert made.status_code == 201 and url.startswith(f"/v1/artifacts/{artifact}/files/m.safetensors?link=") and made.json()["expires_at"].endswith("Z")
    whole = nobody.get(url)
    assert whole.content == data and whole.headers["referrer-policy"] == "no-referrer" and "private" in whole.headers["cache-control"]
    part = nobody.get(url, headers={"Range": "bytes=10-19"})
    assert part.status_code == 206 and part.content == data[10:20]
    assert nobody.head(url).headers["content-length"] == str(len(data))
    problem(nobody.get(urlsplit(url).path), 401, "unauthorized")


def test_an_owner_may_have_the_longest_name(api, nobody, data):
    api.keys["long"] = (key := new_key())
    with api.session() as s, s.begin():
        create_key(s, "\U00020000" * 64, key=key)
    with api.client("long") as client:
        artifact = client.post("/v1/artifacts", params={"name": "m.safetensors"}, content=data).json()["id"]
        assert nobody.get(link(client, "artifacts", artifact, "files/m.safetensors").json()["url"]).content == data


def test_it_opens_nothing_else(alice, bob, nobody, artifact, model, problem):
    other = alice.post("/v1/artifacts", params={"name": "m.safetensors"}, content=model({"x.weight": ("F32", [8, 8])})).json()["id"]
    token = link(alice, "artifacts", artifact, "archive").json()["url"].split("link=")[1]
    for path in (f"artifacts/{artifact}/files/m.safetensors", f"artifacts/{artifact}/archive/", f"artifacts/{other}/archive", f"artifacts/{artifact}/report"):
        answer = nobody.get(f"/v1/{path}?link={token}", follow_redirects=False)
        assert answer.status_code in (403, 404)
    problem(nobody.get(f"/v1/artifacts/{other}/archive?link={token}"), 403, "invalid-link")
    for method, path in (("GET", f"artifacts/{artifact}"), ("DELETE", f"artifacts/{artifact}"), ("GET", "artifacts"), ("POST", f"artifacts/{artifact}/link")):
        problem(nobody.request(method, f"/v1/{path}?link={token}"), 401, "unauthorized")
    problem(bob.get(f"/v1/artifacts/{other}/archive?link={token}"), 403, "invalid-link")  # a key beside it changes nothing
    assert nobody.get(f"/v1/artifacts/{artifact}/archive?link={token}").status_code == 200


@pytest.mark.parametrize("part", [0, 1, 2])
def test_an_altered_link_is_none(alice, nobody, artifact, problem, part):
    token = link(alice, "artifacts", artifact, "archive").json()["url"].split("link=")[1]
    for altered in (
        lambda p: "1" + p[1:] if part == 0 and p[0] != "1" else p[:-2] + ("AA" if p[-2:] != "AA" else "BB"), lambda p: p + "1", lambda p: p[:-1], lambda p: "",
    ):  # fmt: skip
        parts = token.split(".")
        parts[part] = altered(parts[part])
        problem(nobody.get(f"/v1/artifacts/{artifact}/archive", params={"link": ".".join(parts)}), 403, "invalid-link")
    for nonsense in ("", "x", "..", "1.2.3", token + ".", "١" + token[1:], token + "\u0000"):
        problem(nobody.get(f"/v1/artifacts/{artifact}/archive", params={"link": nonsense}), 403, "invalid-link")
    problem(nobody.get(f"/v1/artifacts/{artifact}/archive", params={"link": "x" * 401}), 400, "malformed-request")


def test_it_expires(alice, nobody, artifact, problem):
    url = link(alice, "artifacts", artifact, "archive", expires_in=1).json()["url"]
    while (answer := nobody.get(url)).status_code == 200:
        time.sleep(0.1)
    assert "expired" in problem(answer, 403, "invalid-link")["detail"]


def test_deleting_the_artifact_ends_it(alice, nobody, artifact, problem):
    url = link(alice, "artifacts", artifact, "files/m.safetensors").json()["url"]
    assert alice.delete(f"/v1/artifacts/{artifact}").status_code == 204
    problem(nobody.get(url), 404, "not-found")


def test_the_owner_may_read_what_is_still_the_owners(api, alice, nobody, artifact, problem):
    """A link is worth what its owner may read, not more."""
    url = link(alice, "artifacts", artifact, "archive").json()["url"]
    with api.session() as s, s.begin():
        s.execute(update(Artifact).where(Artifact.id == artifact).values(owner="bob"))
    problem(nobody.get(url), 404, "not-found")


def test_a_browser_watches_a_job(api, alice, nobody, artifact, problem):
    job = alice.post("/v1/jobs", json={"input": artifact, "preset": "lossless"}).json()["id"]
    url = link(alice, "jobs", job, "events").json()["url"]
    with connect_sse(nobody, "GET", url) as source:
        stream = source.iter_sse()
        while not (first := next(stream)).data:
            pass
        assert first.id == "1"
    alice.post(f"/v1/jobs/{job}/cancel")
    with connect_sse(nobody, "GET", url, headers={"Last-Event-ID": "1"}) as source:
        assert [e.event for e in source.iter_sse() if e.data] == ["state"]
    assert nobody.get(url + "&last_event_id=2").status_code == 204
    problem(nobody.get(f"/v1/jobs/{job}?link={url.split('link=')[1]}"), 401, "unauthorized")


def test_what_cannot_be_linked(alice, bob, artifact, problem):
    job = alice.post("/v1/jobs", json={"input": artifact, "preset": "lossless"}).json()["id"]
    for noun, ident, path in (("artifacts", artifact, "files/x"), ("artifacts", artifact, "../jobs"), ("artifacts", artifact, "events"), ("jobs", job, "cancel")):
        problem(link(alice, noun, ident, path), 422, "invalid-path", "/path")
    for seconds in (0, -1, 604_801, 1.5, "60"):
        problem(link(alice, "artifacts", artifact, "archive", expires_in=seconds), 422, "invalid-job-spec", "/expires_in")
    problem(link(alice, "artifacts", artifact, "archive", method="PUT"), 422, "invalid-job-spec", "/method")
    problem(link(bob, "artifacts", artifact, "archive"), 404, "not-found")
    problem(link(bob, "jobs", job, "events"), 404, "not-found")
    problem(link(alice, "jobs", str(uuid.uuid4()), "events"), 404, "not-found")
    alice.post(f"/v1/jobs/{job}/cancel")


def test_every_api_process_knows_it_and_no_log_shows_it(api, alice, nobody, artifact):
    url = link(alice, "artifacts", artifact, "archive").json()["url"]
    assert nobody.get(url).status_code == 200
    with api.session() as s:
        secret = s.get_one(Secret, "links").value
    log = (api.home / "api.log").read_text()
    for private in (url.split("link=")[1], url.rsplit(".", 1)[1], secret):
        assert private not in log
    signature = url.rsplit(".", 1)[1]
    assert links._signature(secret, f"/v1/artifacts/{artifact}/archive", "alice", int(url.split("link=")[1].split(".")[0])) == signature


@examples(deadline=None)  # each asks the database
@given(st.text(max_size=300), st.sampled_from(["GET", "HEAD", "DELETE"]))
def test_whatever_is_no_link_opens_nothing(api_links, token, method):
    with pytest.raises(links.InvalidLink):
        links.open_link(token, method, "/v1/artifacts/x/archive")


@examples(deadline=None)  # each asks the database
@given(path=st.text(min_size=1, max_size=50).filter(str.isprintable), owner=st.text(st.characters(codec="utf-8"), min_size=1, max_size=64))
def test_what_was_made_opens(api_links, path, owner):
    url, expires = links.make("/" + path, owner, 60)
    token = url.split("?link=")[1]
    assert links.open_link(token, "GET", "/" + path) == owner
    for other in ("/" + path + "x", "/" + path[:-1], "//" + path):
        with pytest.raises(links.InvalidLink):
            links.open_link(token, "GET", other)
    with pytest.raises(links.InvalidLink):
        links.open_link(token, "DELETE", "/" + path)


@pytest.fixture(scope="module")
def api_links(tmp_path_factory):
    from homes import own_home

    with own_home(tmp_path_factory.mktemp("links")):
        yield
