"""Whose key it is and what it may do; a foreign id answers byte for byte as an unknown one, whatever the route; what is changed is logged."""

from __future__ import annotations

import time
import uuid

import httpx
import pytest
from homes import KINDS, own_home
from sqlalchemy import text, update
from sqlalchemy.exc import DBAPIError

from app import api_keys, audit, db, last_use
from app.models import ApiKey, Audit, Delivery
from app.scopes import SCOPES

TUS = {"Tus-Resumable": "1.0.0"}
CHANGES = ("post", "put", "patch", "delete")
LOOKING = {("post", "/v1/verify"), ("post", "/v1/estimates")}  # change nothing
OPEN = {"/healthz", "/readyz", "/metrics", "/v1/keys", "/v1/methods", "/v1/presets", "/v1/formats"}


class Someone:
    """An owner of this test's own, with a key of every scope."""

    def __init__(self, api):
        self.api, self.owner = api, f"owner {uuid.uuid4()}"
        with api.session() as s, s.begin():
            self.keys = {scope: api_keys.create_key(s, self.owner, scope=scope) for scope in SCOPES}

    def client(self, scope: str = "admin") -> httpx.Client:
        return httpx.Client(base_url=self.api.url, headers={"Authorization": f"Bearer {self.keys[scope]}"}, timeout=60)

    def log(self) -> list[dict]:
        with self.client() as c:
            return c.get("/v1/audit", params={"limit": 500}).json()["items"]


@pytest.fixture
def carol(api):
    return Someone(api)


def job_of(client, artifact: str) -> str:
    made = client.post("/v1/jobs", json={"input": artifact, "preset": "lossless"})
    assert made.status_code == 202, made.text
    return made.json()["id"]


def begun(client) -> str:
    header = TUS | {"Upload-Length": "10", "Upload-Metadata": "filename bS5zYWZldGVuc29ycw=="}
    return client.post("/v1/uploads", headers=header).headers["location"].rsplit("/", 1)[1]


def things(api, client, owner: str, data: bytes) -> dict[str, tuple[str, dict]]:
    """For every kind of path with an id: an id of the owner's, and what its requests send. A new kind of path has to be added here, or the test fails."""
    artifact = client.post("/v1/artifacts", params={"name": "m.safetensors"}, content=data).json()["id"]
    comparison = client.post("/v1/comparisons", json={"input": artifact, "recipes": ["lossless"]}).json()["id"]
    job, delivery = job_of(client, artifact), str(uuid.uuid4())
    with api.session() as s, s.begin():
        s.add(Delivery(id=delivery, job_id=job, owner=owner, url="https://example.org/", host="example.org", body={"type": "job.succeeded"}))
    key = client.post("/v1/api-keys", json={}).json()["id"]
    patched = {"headers": TUS | {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}, "content": b"x"}
    return {
        "/v1/artifacts/{ident}": (artifact, {"json": {"expires_at": None}}),
        "/v1/artifacts/{ident}/link": (artifact, {"json": {"path": "archive"}}),
        "/v1/artifacts/{ident}/files/{path}": (artifact, {}),
        **{f"/v1/artifacts/{{ident}}/{name}": (artifact, {}) for name in ("signature", "provenance", "report", "archive")},
        "/v1/uploads/{ident}": (begun(client), patched),
        **{f"/v1/direct-uploads/{{ident}}{end}": (begun(client), {}) for end in ("", "/complete")},
        "/v1/jobs/{ident}": (job, {}),
        **{f"/v1/jobs/{{ident}}/{name}": (job, {"json": {"path": "report"}} if name == "link" else {}) for name in ("events", "report", "cancel", "link")},
        "/v1/comparisons/{ident}": (comparison, {}),
        "/v1/comparisons/{ident}/cancel": (comparison, {}),
        "/v1/webhooks/deliveries/{ident}/retry": (delivery, {}),
        "/v1/api-keys/{ident}": (key, {}),
        "/v1/api-keys/{ident}/renew": (key, {"json": {}}),
    }


def told(response: httpx.Response) -> tuple:
    """All that an answer says, but for its time and what is counted of its sender."""
    own = ("date", "x-request-id", "ratelimit", "content-length")
    body = response.content.replace(response.headers["x-request-id"].encode(), b"")
    return response.status_code, sorted((k, v) for k, v in response.headers.items() if k not in own), body


def test_a_foreign_id_answers_byte_for_byte_as_an_unknown_one_on_every_route(api, carol, model):
    """Over the OpenAPI document, so that a route to come is held to it too."""
    paths = api.client(None).get("/openapi.json").json()["paths"]
    with carol.client() as mine, Someone(api).client() as other:
        here = things(api, mine, carol.owner, model())
        asked = 0
        for path, operations in paths.items():
            if "{" not in path:
                continue
            ident, more = here[path]
            for method in [*operations, *(["head"] if "get" in operations else [])]:
                if method == "options":
                    continue
                sent = {"headers": TUS} | more if method not in ("get", "head") else {"headers": TUS}
                places = [path.replace("{ident}", i).replace("{path}", "m.safetensors") for i in (ident, str(uuid.uuid4()), "x", ident.upper())]
                foreign, *unknown = (told(other.request(method, place, **sent)) for place in places)
                assert foreign[0] in ((404, 405) if method == "head" else (404,)) and all(foreign == answer for answer in unknown), (method, path, foreign)
                asked += 1
        assert asked > 30
        for path, (ident, more) in here.items():  # and they were there
            if "direct" not in path and ("get" in paths[path]) and not path.endswith(("signature", "provenance", "report", "events")):
                assert mine.get(path.replace("{ident}", ident).replace("{path}", "m.safetensors")).status_code == 200, path


def test_bodies_that_name_a_foreign_id_answer_as_for_an_unknown_one(api, carol, model):
    with carol.client() as mine, Someone(api).client() as other:
        artifact, own = (c.post("/v1/artifacts", params={"name": "m.safetensors"}, content=model()).json()["id"] for c in (mine, other))
        for path, body in {
            "/v1/jobs": lambda i: {"input": i, "preset": "lossless"},
            "/v1/jobs ": lambda i: {"input": own, "preset": "lossless", "calibration": i},
            "/v1/estimates": lambda i: {"input": i, "preset": "lossless"},
            "/v1/comparisons": lambda i: {"input": i, "recipes": ["lossless"]},
            "/v1/artifacts": lambda i: {"files": [{"path": "m.safetensors", "artifact": i}]},
        }.items():
            foreign, unknown = (told(other.post(path.strip(), json=body(i))) for i in (artifact, str(uuid.uuid4())))
            assert foreign == unknown and foreign[0] == 404, path


def test_every_route_but_the_open_ones_wants_a_key_and_the_scope_for_it(api, carol, nobody):
    paths = api.client(None).get("/openapi.json").json()["paths"]
    with carol.client("read") as reading, carol.client("write") as writing:
        for path, operations in paths.items():
            place = path.replace("{ident}", str(uuid.uuid4())).replace("{path}", "x")
            for method in operations:
                if path in OPEN or method == "options":
                    continue
                assert nobody.request(method, place).status_code == 401, (method, path)
                answer = reading.request(method, place)
                refused = answer.status_code == 403 and answer.json()["type"] == "insufficient-scope"
                assert refused == ((method in CHANGES and (method, path) not in LOOKING) or path in ("/v1/webhooks/secret", "/v1/audit", "/v1/api-keys")), (method, path)
                administers = path.startswith(("/v1/api-keys", "/v1/audit"))
                assert (writing.request(method, place).status_code == 403) == administers, (method, path)
        assert 'error="insufficient_scope", scope="write"' in reading.delete(f"/v1/artifacts/{uuid.uuid4()}").headers["www-authenticate"]


def test_a_key_is_made_renewed_with_overlap_and_revoked(api, carol, problem):
    with carol.client() as admin:
        made = admin.post("/v1/api-keys", json={"name": "laboratory", "scope": "read"})
        key = made.json()
        assert made.status_code == 201 and made.headers["cache-control"] == "no-store" and key["scope"] == "read"

        def status(of: dict) -> int:
            return httpx.get(f"{api.url}/v1/jobs", headers={"Authorization": f"Bearer {of['key']}"}).status_code

        new = admin.post(f"/v1/api-keys/{key['id']}/renew", json={"overlap": 1}).json()
        assert (new["name"], new["scope"]) == ("laboratory", "read") and status(key) == status(new) == 200
        end = time.monotonic() + 10
        while status(key) == 200 and time.monotonic() < end:
            time.sleep(0.1)
        assert (status(key), status(new)) == (401, 200)
        problem(admin.post(f"/v1/api-keys/{key['id']}/renew", json={}), 409, "conflict")
        assert admin.delete(f"/v1/api-keys/{new['id']}").status_code == 204 and status(new) == 401
        listed = admin.get("/v1/api-keys").json()["items"]
        assert {new["id"], key["id"]} <= {k["id"] for k in listed} and new["key"] not in str(listed)
        problem(admin.post("/v1/api-keys", json={"expires_at": "2020-01-01T00:00:00Z"}), 422, "unprocessable", "/expires_at")
        problem(admin.post("/v1/api-keys", json={"scope": "root"}), 422, "invalid-job-spec", "/scope")


def test_the_last_use_is_written_by_and_by_and_never_goes_back(tmp_path, monkeypatch):
    with own_home(tmp_path):
        key, row = api_keys.issue_key("o")
        monkeypatch.setattr(last_use, "_noted", {})
        before = time.time()
        last_use.note(row.id)
        last_use.write()
        with db.session() as s, s.begin():
            first = s.get_one(ApiKey, row.id).last_used_at
            api_keys.used(s, {row.id: 3600.0})
            assert before - 5 < first == s.get_one(ApiKey, row.id, populate_existing=True).last_used_at
        assert last_use._noted == {}


def test_every_change_is_logged_with_who_made_it(api, carol, model):
    """Each operation of the document that changes something, once: a route to come that logs nothing fails here."""
    paths = api.client(None).get("/openapi.json").json()["paths"]
    with carol.client() as admin:
        here = things(api, admin, carol.owner, model())
        artifact = here["/v1/artifacts/{ident}"][0]
        bodies = {
            "/v1/artifacts": {"params": {"name": "m.safetensors"}, "content": model({"x.weight": ("F32", [2, 2])})},
            "/v1/uploads": {"headers": TUS | {"Upload-Length": "0", "Upload-Metadata": "filename YS50eHQ="}},
            "/v1/jobs": {"json": {"input": artifact, "preset": "lossless"}},
            "/v1/comparisons": {"json": {"input": artifact, "recipes": ["lossless"]}},
            "/v1/api-keys": {"json": {}},
        }
        order = sorted((method == "delete", path, method) for path, found in paths.items() for method in found if method in CHANGES)
        for _, path, method in order:
            if (method, path) in LOOKING or "direct" in path or (method, path) == ("patch", "/v1/uploads/{ident}"):
                continue  # the direct ones need a bucket; an upload's bytes change nothing until they are an artifact
            ident, more = here.get(path, (None, bodies.get(path, {})))
            if (method, path) == ("delete", "/v1/artifacts/{ident}"):
                ident = admin.post("/v1/artifacts", params={"name": "m.safetensors"}, content=model({"y.weight": ("F32", [2, 2])})).json()["id"]
            before = {entry["id"] for entry in carol.log()}
            answer = admin.request(method, path.replace("{ident}", ident or ""), **({"headers": TUS} | more))
            assert answer.is_success or path == "/v1/uploads", (method, path, answer.text)
            new = [entry for entry in carol.log() if entry["id"] not in before]
            assert new and all(entry["actor"] == "key" and entry["key"] and entry["request_id"] == answer.headers["x-request-id"] for entry in new), (method, path)
        assert {"key.create", "artifact.create", "upload.begin", "job.submit", "comparison.submit", "link.create"} <= {e["action"] for e in carol.log()}
        with api.client("bob") as bob:
            assert bob.get("/v1/audit").status_code == 403


@pytest.mark.parametrize("kind", KINDS)
def test_the_database_itself_refuses_to_change_the_log(tmp_path, kind):
    audit.actor.set((audit.SERVICE, None))  # a command that ran in this process before was an operator's
    with own_home(tmp_path, kind):
        with db.session() as s, s.begin():
            audit.record(s, "key.create", "o", seconds=3)
        for statement in (update(Audit).values(owner="x"), text("DELETE FROM audit"), text("UPDATE audit SET action = 'x' WHERE owner = 'o'")):
            with pytest.raises(DBAPIError, match="append-only"), db.session() as s, s.begin():
                s.execute(statement)
        with db.reading() as s:
            (row,) = s.query(Audit).all()
        assert (row.owner, row.actor, row.details) == ("o", "service", {"seconds": 3})
        replace = "INSERT OR REPLACE INTO audit SELECT * FROM audit" if kind == "sqlite" else "TRUNCATE audit"
        with pytest.raises(DBAPIError, match="append-only"), db.session() as s, s.begin():
            s.execute(text(replace))
