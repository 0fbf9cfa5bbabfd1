"""The client against servers that lie or break off. (tests/service/test_cli.py has it talk to the real one.)"""

from __future__ import annotations

import asyncio
import hashlib
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from app.client import AsyncClient, Client
from app.errors import ChecksumMismatch, GateFailed, InputRefused, InvalidJobSpec, JobFailure, ModelpressError, NotFound, Unavailable
from app.flows import error_of


@contextmanager
def answers(replies: dict[str, tuple[int, bytes] | list[tuple[int, bytes]]]):
    """A server that answers each path from `replies` (a list: one after the other), else 404; yields its address and the requests seen."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def reply(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = self.path.split("?")[0]
            seen.append((self.command, self.path, dict(self.headers), body))
            known = replies.get(path, (404, problem("not-found", 404)))
            status, content = known.pop(0) if isinstance(known, list) else known
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = reply

        def log_message(self, *_): ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def problem(kind: str, status: int, **more) -> bytes:
    return json.dumps({"type": kind, "title": "T", "status": status, "detail": "D"} | more).encode()


def artifact(path: str, data: bytes) -> tuple[int, bytes]:
    return 200, json.dumps({"id": "a", "files": [{"path": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}]}).encode()


@pytest.mark.parametrize(
    "kind, cls",
    [
        ("not-found", NotFound), ("invalid-job-spec", InvalidJobSpec), ("gate-failed", GateFailed), ("unsafe-pickle", InputRefused),
        ("of-tomorrow", ModelpressError),
    ],  # fmt: skip
)
def test_a_problem_becomes_the_error_that_made_it(kind, cls):
    e = error_of({"type": kind, "title": "T", "status": 418, "detail": "D", "pointer": "/a", "choices": ["x"]})
    assert type(e) is cls and e.problem() == {"type": kind, "title": "T", "status": 418, "detail": "D", "pointer": "/a", "choices": ["x"]}


def test_upload_sends_the_file_its_length_and_its_digest(tmp_path):
    data = bytes(range(256)) * 8192
    (tmp_path / "m.safetensors").write_bytes(data)
    moved = []
    with answers({"/v1/artifacts": (201, b'{"id": "a"}')}) as (url, seen), Client(url, "secret") as c:
        assert c.upload(tmp_path / "m.safetensors", progress=moved.append) == {"id": "a"}
    ((method, path, headers, body),) = seen
    assert (method, path, body) == ("POST", "/v1/artifacts?name=m.safetensors", data)
    assert headers["Repr-Digest"].startswith("sha-256=:") and headers["Authorization"] == "Bearer secret" and sum(moved) == len(data)


def test_a_wrong_byte_leaves_nothing_behind(tmp_path):
    with answers({"/v1/artifacts/a": artifact("m.bin", b"right"), "/v1/artifacts/a/files/m.bin": (200, b"wrong")}) as (url, _), Client(url, "k") as c:
        with pytest.raises(ChecksumMismatch, match="m.bin"):
            c.download("a", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("path", ["../evil", "/etc/evil", "a/../../evil", "./x", "a//b", ""])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path, path):
    with answers({"/v1/artifacts/a": artifact(path, b"x")}) as (url, seen), Client(url, "k") as c:
        with pytest.raises(ModelpressError, match="leaves the folder"):
            c.download("a", tmp_path / "out")
    assert len(seen) == 1 and not (tmp_path / "out").exists()


def test_an_unsigned_artifact_is_downloaded_alone(tmp_path):
    with answers({"/v1/artifacts/a": artifact("sub/m.bin", b"x"), "/v1/artifacts/a/files/sub/m.bin": (200, b"x")}) as (url, _), Client(url, "k") as c:
        c.download("a", tmp_path)
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()] == ["sub/m.bin"]


def test_wait_raises_what_the_job_failed_with():
    running = (200, b'{"state": "running", "progress": {"stage": "compress", "fraction": 0.5}}')
    failed = (200, json.dumps({"state": "failed", "error": json.loads(problem("gate-failed", 422))}).encode())
    with answers({"/v1/jobs/j": [running, failed], "/v1/jobs/c": (200, b'{"state": "cancelled"}')}) as (url, _), Client(url, "k") as c:
        seen = []
        with pytest.raises(GateFailed):
            c.wait("j", seen.append)
        assert [j["state"] for j in seen] == ["running", "failed"]
        with pytest.raises(JobFailure, match="cancelled"):
            c.wait("c")


def test_jobs_follows_the_pages():
    pages = [(200, b'{"items": [1, 2], "next": "x"}'), (200, b'{"items": [3], "next": null}')]
    with answers({"/v1/jobs": pages}) as (url, seen), Client(url, "k") as c:
        assert c.jobs() == [1, 2, 3]
    assert [s[1] for s in seen] == ["/v1/jobs", "/v1/jobs?cursor=x"]


def test_the_async_client_does_the_same(tmp_path):
    async def both(url):
        async with AsyncClient(url, "k") as c:
            (tmp_path / "m").write_bytes(b"data")
            up = await c.upload(tmp_path / "m")
            await c.download("a", tmp_path / "out")
            with pytest.raises(NotFound):
                await c.job("unknown")
            return up

    replies = {"/v1/artifacts": (201, b'{"id": "a"}'), "/v1/artifacts/a": artifact("m", b"x"), "/v1/artifacts/a/files/m": (200, b"x")}
    with answers(replies) as (url, seen):
        assert asyncio.run(both(url)) == {"id": "a"}
    assert seen[0][3] == b"data" and (tmp_path / "out/m").read_bytes() == b"x"


def test_no_service_and_no_answer_of_ours_are_said_so():
    with Client("http://127.0.0.1:9", "k") as c, pytest.raises(Unavailable, match="no service answers at http://127.0.0.1:9"):
        c.jobs()
    with answers({"/v1/jobs": (502, b"<html>")}) as (url, _), Client(url, "k") as c, pytest.raises(ModelpressError, match="answered 502"):
        c.jobs()
