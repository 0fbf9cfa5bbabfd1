"""Strangers' strings, wherever the API takes one: refused or kept, never an error of the database. And JSON that takes long to parse."""

from __future__ import annotations

import asyncio
import base64
import json
import threading

import pytest
from fastapi import Request

from app.api import requests
from app.errors import InvalidCursor

NUL = "a\0b"
ID = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def artifact(alice, model) -> str:
    return alice.post("/v1/artifacts", params={"name": "m.safetensors"}, content=model()).json()["id"]


def forged(*parts) -> str:
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")


def metadata(**values: str) -> str:
    return ",".join(f"{name} {base64.b64encode(value.encode(errors='surrogatepass')).decode()}" for name, value in values.items())


PATHS = [
    *(f"/v1/{what}/a%00b" for what in ("artifacts", "jobs", "uploads", "keys", "formats", "direct-uploads")),
    *(f"/v1/jobs/a%00b/{what}" for what in ("report", "events", "events?last_event_id=%00")),
    *(f"/v1/artifacts/{{artifact}}/{what}" for what in ("files/a%00b", "files/m.safetensors?link=%00", "archive?link=a%00b")),
    *(f"/v1/{what}?cursor={forged(1.0, NUL)}" for what in ("artifacts", "jobs", "webhooks/deliveries")),
    *(f"/v1/jobs?{query}" for query in ("state=%00", "cursor=%00", "limit=%00")),
]


@pytest.mark.parametrize("path", PATHS)
def test_addresses(alice, artifact, path):
    r = alice.get(path.format(artifact=artifact))
    assert 400 <= r.status_code < 500 and r.json()["type"], r.text


@pytest.mark.parametrize("text", [NUL, "a\x1bb", "a\u202eb", "\ud800"], ids=ascii)
@pytest.mark.parametrize("case", ["composition", "part", "job's tag", "job's tag's name", "webhook", "job's input", "estimate", "link", "lifetime"])
def test_bodies(alice, artifact, case, text):
    folder, job = {"files": [{"path": "m.safetensors", "artifact": artifact}]}, {"input": artifact, "preset": "lossless"}
    path, body = {
        "composition": ("artifacts", folder | {"name": text}),
        "part": ("artifacts", {"files": [{"path": text, "artifact": artifact}]}),
        "job's tag": ("jobs", job | {"tags": {"a": text}}),
        "job's tag's name": ("jobs", job | {"tags": {text: "a"}}),
        "webhook": ("jobs", job | {"webhook": {"url": f"https://example.com/{text}"}}),
        "job's input": ("jobs", job | {"input": text}),
        "estimate": ("estimates", {"files": [{"path": text, "size": 1}], "preset": "lossless"}),
        "link": (f"artifacts/{artifact}/link", {"path": text}),
        "lifetime": (f"artifacts/{artifact}", {"expires_at": text}),
    }[case]
    r = alice.request("PATCH" if case == "lifetime" else "POST", f"/v1/{path}", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert r.status_code < 500, r.text
    if r.status_code < 300:
        assert alice.get(r.headers["location"]).status_code == 200 and "tag" in case
    if case == "composition":
        assert r.status_code == 422 and r.json()["pointer"] == "/name"


@pytest.mark.parametrize("text", [NUL, "a\x1bb", "\ud800"], ids=ascii)
def test_names_and_kinds_at_upload(alice, model, text):
    query = [{"name": text.encode(errors="surrogatepass")}, {"name": "m.safetensors", "kind": text.encode(errors="surrogatepass")}]
    for params in query:
        assert alice.post("/v1/artifacts", params=params, content=model()).status_code in (201, 400, 422)
    for told in ({"filename": text}, {"filename": "m", "kind": text}, {"filename": "m", "sha256": text}, {"filename": "m", "more": text}):
        headers = {"Tus-Resumable": "1.0.0", "Upload-Length": "10", "Upload-Metadata": metadata(**told)}
        assert alice.post("/v1/uploads", headers=headers).status_code in (201, 400, 422), told


def test_headers(alice, artifact):
    for headers in ({"Idempotency-Key": "a\x80b"}, {"X-Request-Id": "\x80"}, {"Authorization": "Bearer \x80"}):
        sent = {name: value.encode("latin-1") for name, value in headers.items()}
        assert alice.post("/v1/jobs", json={"input": artifact, "preset": "lossless"}, headers=sent).status_code < 500, headers


@pytest.mark.parametrize("parts", [(1.0, NUL), (1.0, "x"), (float("nan"), ID), (float("inf"), ID), (1, ID), (1.0, ID, 1)])
def test_forged_cursors(parts):
    with pytest.raises(InvalidCursor):
        requests.parse_cursor(forged(*parts))
    assert requests.parse_cursor(requests.cursor(1.5, ID)) == (1.5, ID)


def test_what_takes_long_to_parse_holds_up_nobody(monkeypatch):
    monkeypatch.setattr(requests, "parse_json", lambda body: threading.current_thread())

    async def parsed_by(size: int) -> threading.Thread:
        async def receive():
            return {"type": "http.request", "body": b" " * size}

        scope = {"type": "http", "headers": [(b"content-type", b"application/json")]}
        return await requests.read_json(Request(scope, receive))

    assert asyncio.run(parsed_by(10)) is threading.main_thread() is not asyncio.run(parsed_by(requests.LARGE + 1))
