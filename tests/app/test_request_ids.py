"""Ids of requests: in answers, in problems, in the log, and with the job."""

from __future__ import annotations

import json
import re
import socket

import pytest

from app.models import Job


def lines(api) -> list[dict]:
    return [json.loads(line) for line in (api.home / "api.log").read_text().splitlines() if line.startswith("{")]


def logged(api, ident: str) -> list[dict]:
    return [line for line in lines(api) if line.get("request_id") == ident]


def test_a_word_is_taken_and_comes_back(alice, api):
    told = alice.get("/v1/jobs", params={"limit": 1}, headers={"X-Request-Id": "abc-123.4:5_6"})
    assert told.headers["x-request-id"] == "abc-123.4:5_6"
    (line,) = (line for line in logged(api, "abc-123.4:5_6") if line["logger"] == "app.traffic")  # what else happened on the way says so, too
    assert (line["logger"], line["method"], line["route"], line["status"], line["part"]) == ("app.traffic", "GET", "/v1/jobs", 200, "api")
    assert line["ms"] >= 0 and line["bytes_out"] == len(told.content) and line["bytes_in"] == 0


@pytest.mark.parametrize("bad", ["", "a" * 65, "a b", "a\tb", '{"x":1}', "-a", "\xe9", "a;b"])
def test_anything_else_is_replaced(nobody, bad):
    told = nobody.get("/healthz", headers={"X-Request-Id": bad.encode("latin-1")})
    assert re.fullmatch(r"[0-9a-f]{16}", told.headers["x-request-id"])


def test_a_problem_names_it(nobody, alice, problem):
    for client, path in ((nobody, "/v1/jobs"), (alice, "/v1/jobs/x"), (alice, "/nothing"), (alice, f"/{'x' * 9000}")):
        told = client.get(path, headers={"X-Request-Id": "p-1"})
        assert told.json()["request_id"] == told.headers["x-request-id"] == "p-1"


def test_a_job_keeps_the_id_of_the_request_that_made_it(alice, api, model):
    made = alice.post("/v1/artifacts", params={"name": "m.safetensors"}, content=model()).json()["id"]
    job = alice.post("/v1/jobs", json={"input": made, "preset": "lossless"}, headers={"X-Request-Id": "made-by"}).json()
    with api.session() as s:
        assert s.get_one(Job, job["id"]).request_id == "made-by"


def test_the_log_has_no_keys_no_queries_and_no_names(api, alice, model):
    alice.post("/v1/artifacts", params={"name": "secret-name.safetensors"}, content=model())
    alice.get("/v1/jobs", params={"cursor": "secret-cursor"})
    with socket.create_connection(("127.0.0.1", api.port)) as s:
        s.sendall(b"GET /secret-path?signature=secret HTTP/1.1\r\nHost: x\r\nX-Request-Id: a\x00b\r\nConnection: close\r\n\r\n")
        while s.recv(1000):
            pass
    text = (api.home / "api.log").read_text()
    assert not re.search("secret-(name|cursor|path)|signature=", text) and not any(key in text for key in api.keys.values()) and "mp_" not in text
    assert all(line.startswith("{") for line in text.splitlines())
