"""An API process that is told to stop: what it does with what is under way."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time

import httpx
import psutil
import pytest

from app import main
from app.config import settings


@pytest.fixture
def api(tmp_path, serve_api):
    with serve_api(tmp_path) as made:
        yield made


def job(api, model) -> str:
    with api.client() as c:
        ident = c.post("/v1/artifacts", params={"name": "m.safetensors"}, content=model()).json()["id"]
        return c.post("/v1/jobs", json={"input": ident, "preset": "lossless"}).json()["id"]


def open_requests(api) -> float:
    with api.client(None) as c:
        lines = c.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("modelpress_http_requests_open ")) - 1


def stop(api) -> None:
    os.kill(api.pid, signal.SIGTERM)


def test_long_polls_and_streams_end_whole(api, model):
    """A poll is answered with what is known; a stream ends as a stream does."""
    ident, answers = job(api, model), {}

    def poll():
        with api.client() as c:
            answers["poll"] = c.get(f"/v1/jobs/{ident}", params={"wait": 60})

    def follow():
        with api.client() as c:
            answers["stream"] = c.get(f"/v1/jobs/{ident}/events")

    threads = [threading.Thread(target=t) for t in (poll, follow)]
    for thread in threads:
        thread.start()
    while open_requests(api) < 2:
        time.sleep(0.05)
    stop(api)
    for thread in threads:
        thread.join(30)
    assert answers["poll"].json()["state"] == "queued" and "event: state" in answers["stream"].text
    psutil.Process(api.pid).wait(30)


def test_an_upload_under_way_is_taken_to_its_end_and_no_other_begins(api, model):
    data = model({"a.weight": ("F32", [256, 256])})
    with socket.create_connection(("127.0.0.1", api.port)) as s:
        head = f"POST /v1/artifacts?name=a.safetensors HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.keys['alice']}\r\nContent-Length: {len(data)}\r\n\r\n"
        s.sendall(head.encode() + data[:1000])
        while open_requests(api) < 1:
            time.sleep(0.05)
        stop(api)
        with contextlib.suppress(httpx.TransportError):
            while True:
                httpx.get(f"{api.url}/healthz")
                time.sleep(0.02)
        s.sendall(data[1000:])
        s.settimeout(30)
        assert s.recv(100).startswith(b"HTTP/1.1 201 ")
    psutil.Process(api.pid).wait(30)


def test_what_does_not_end_holds_nothing_up(api):
    with socket.create_connection(("127.0.0.1", api.port)) as s:
        head = f"POST /v1/artifacts?name=a.safetensors HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.keys['alice']}\r\nContent-Length: 1000\r\n\r\nabc"
        s.sendall(head.encode())
        while open_requests(api) < 1:
            time.sleep(0.05)
        stop(api)
        psutil.Process(api.pid).wait(30)
    assert not any("uploads" in name for name in api.stored())


def test_how_long_open_requests_have_is_for_the_operator_to_say(monkeypatch):
    given = {}
    monkeypatch.setattr(main.uvicorn, "run", lambda _, **said: given.update(said))
    monkeypatch.setattr(main.logs, "setup", lambda part: None)
    monkeypatch.setattr(settings(), "api_grace", 25)
    main.serve()
    assert given["timeout_graceful_shutdown"] == 25
