"""`/metrics` over HTTP: who may read it, that strict parsers do, and that nobody's words are in it."""

from __future__ import annotations

import re
import socket
import time

import httpx
import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families


def samples(text: str) -> dict[tuple, float]:
    return {(s.name, *sorted(s.labels.items())): s.value for f in text_string_to_metric_families(text) for s in f.samples}


def count(nobody: httpx.Client, route: str, method: str, status: str) -> float:
    key = ("modelpress_http_requests_total", ("method", method), ("route", route), ("status", status))
    return samples(nobody.get("/metrics").text).get(key, 0)


def test_both_formats_parse(nobody, alice):
    alice.get("/v1/jobs")
    plain = nobody.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert samples(plain.text)["modelpress_database_up",] == 1
    other = nobody.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert other.headers["content-type"].startswith("application/openmetrics-text")
    names = {f.name for f in openmetrics.text_string_to_metric_families(other.text)}
    assert {"modelpress_http_requests", "modelpress_http_request_seconds", "modelpress_jobs", "modelpress_stage_seconds"} <= names


def test_requests_are_counted_by_template(nobody, alice, model):
    before = count(nobody, "/v1/artifacts/{ident}", "GET", "404")
    for ident in ("nothing", "a%22b%0A", "secret-id"):
        alice.get(f"/v1/artifacts/{ident}")
    assert count(nobody, "/v1/artifacts/{ident}", "GET", "404") >= before + 3
    made = alice.post("/v1/artifacts", params={"name": "secret-name.safetensors"}, content=model()).json()
    job = alice.post("/v1/jobs", json={"input": made["id"], "preset": "lossless", "tags": {"secret-tag": "x"}}).json()
    alice.get(f"/v1/jobs/{job['id']}", params={"wait": 0.01})
    nobody.request("SECRET-METHOD", "/secret-path")
    text = nobody.get("/metrics").text
    assert not re.search(r"secret-(id|name|tag|method|path)", text, re.IGNORECASE) and made["id"] not in text and job["id"] not in text and "alice" not in text
    told = samples(text)
    assert told["modelpress_http_requests_total", ("method", "GET"), ("route", "/v1/jobs/{ident}?wait"), ("status", "200")] >= 1
    assert told["modelpress_http_requests_total", ("method", "other"), ("route", "none"), ("status", "404")] >= 1


def test_bytes_go_both_ways(nobody, alice, model):
    data = model({"a.weight": ("F32", [512, 512])})

    def moved() -> tuple[float, ...]:
        told = samples(nobody.get("/metrics").text)
        return tuple(told["modelpress_http_bytes_total", ("direction", d)] for d in ("in", "out"))

    before = moved()
    ident = alice.post("/v1/artifacts", params={"name": "m.safetensors"}, content=data).json()["id"]
    assert alice.get(f"/v1/artifacts/{ident}/files/m.safetensors").content == data
    after = moved()
    assert after[0] - before[0] == len(data) and after[1] - before[1] > len(data)


def test_a_request_that_breaks_off_is_counted_and_no_longer_open(nobody, api):
    def broken_off() -> float:
        return sum(count(nobody, "/v1/artifacts", "POST", status) for status in ("400", "499"))

    before = broken_off()
    with socket.create_connection(("127.0.0.1", api.port)) as s:
        key = api.keys["alice"]
        s.sendall(f"POST /v1/artifacts?name=a.safetensors HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: 1000\r\n\r\nabc".encode())
    end = time.monotonic() + 20
    while (broken_off(), samples(nobody.get("/metrics").text)["modelpress_http_requests_open",]) != (before + 1, 1):
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("header", ["Forwarded", "X-Forwarded-For", "X-Real-IP", "Via"])
def test_what_a_proxy_forwards_is_refused(nobody, problem, header):
    problem(nobody.get("/metrics", headers={header: "192.0.2.1"}), 401, "unauthorized")


def test_with_a_token_it_is_the_token_that_counts(tmp_path, serve_api, problem):
    with serve_api(tmp_path, metrics_token="s3cret") as api, api.client(None) as c:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Bearer {api.keys['alice']}"}, {"Authorization": "Bearer s3cret\u00e9".encode()}):
            problem(c.get("/metrics", headers=headers), 401, "unauthorized")
        assert c.get("/metrics", headers={"Authorization": "Bearer s3cret", "X-Forwarded-For": "192.0.2.1"}).status_code == 200
