"""docker/nginx.conf in front of the real API: nothing is held back, hidden or changed on the way. Runs where an nginx is on PATH."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
CONFIG = Path(__file__).parents[2] / "docker" / "nginx.conf"
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


def free() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def proxying(folder: Path, upstream: int, *changes: tuple[str, str]):
    """The same configuration, but for the addresses, where files go, and `changes`. Yields the proxy's port."""
    port, text = free(), CONFIG.read_text()
    for there, here in (
        ("listen 8080;", f"listen 127.0.0.1:{port};"), ("api:8720;", f"127.0.0.1:{upstream};"), (" /tmp/", f" {folder}/"), ("/dev/stdout", f"{folder}/access.log"),
        ("/dev/stderr", f"{folder}/error.log"), ("worker_processes auto;", "worker_processes 1; daemon off;"),
        *changes,
    ):  # fmt: skip
        assert there in text
        text = text.replace(there, here)
    (folder / "nginx.conf").write_text(text)
    process = subprocess.Popen([NGINX, "-c", folder / "nginx.conf", "-e", folder / "error.log"])
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            assert process.poll() is None, (folder / "error.log").read_text()
            time.sleep(0.05)
    yield port
    process.terminate()
    process.wait(10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("proxy")
    made.chmod(0o755)
    return made


@pytest.fixture(scope="module")
def proxy(api, folder):
    with proxying(folder, api.port) as port:
        yield port


@pytest.fixture(scope="module")
def through(api, proxy):
    headers = {"Authorization": f"Bearer {api.keys['alice']}"}
    with httpx.Client(base_url=f"http://127.0.0.1:{proxy}", headers=headers, timeout=30) as client:
        yield client


def test_bytes_go_up_and_come_down(through, model):
    data = model({"a.weight": ("F32", [1024, 1024])})
    made = through.post("/v1/artifacts", params={"name": "m.safetensors"}, content=data)
    assert made.status_code == 201
    path = f"/v1/artifacts/{made.json()['id']}/files/m.safetensors"
    assert through.get(path).content == data
    part = through.get(path, headers={"Range": "bytes=8-99"})
    assert (part.status_code, part.content) == (206, data[8:100]) and part.headers["etag"]
    head = through.head(path)
    assert head.headers["content-length"] == str(len(data)) and "repr-digest" in head.headers


def test_an_upload_is_refused_before_it_is_sent(proxy):
    with socket.create_connection(("127.0.0.1", proxy), 10) as s:
        s.sendall(b"POST /v1/artifacts?name=x HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n")
        assert s.recv(100).startswith(b"HTTP/1.1 401")


def test_what_the_api_says_comes_as_it_is(api, through, alice):
    for path in ("/v1/nothing", "/v1/jobs/x", "/v1//jobs", "/v1/artifacts/x/files/a%2Fb", "/v1/jobs?cursor=%00", "/v1/jobs?limit=0", "/x" * 5000):
        direct, passed = alice.get(path), through.get(path)
        assert passed.status_code == direct.status_code and passed.headers["content-type"] == direct.headers["content-type"], path
        assert passed.json()["type"] == direct.json()["type"]


def test_limits_answer_with_problems(through, problem):
    headers = {"Content-Type": "application/json"}
    problem(through.post("/v1/jobs", content=b" " * (2 << 20), headers=headers), 413, "payload-too-large")
    problem(through.post("/v1/jobs", content=b" " * (33 << 20), headers=headers), 413, "payload-too-large")


def test_metrics_are_not_for_everyone(through, problem):
    problem(through.get("/metrics"), 404, "not-found")


def test_events_come_as_they_happen(through, model):
    artifact = through.post("/v1/artifacts", params={"name": "m.safetensors"}, content=model()).json()["id"]
    job = through.post("/v1/jobs", json={"input": artifact, "preset": "lossless"}).json()["id"]  # nothing runs it: the stream stays open
    with through.stream("GET", f"/v1/jobs/{job}/events") as r:
        assert r.headers["content-type"].startswith("text/event-stream") and next(r.iter_lines()).startswith("retry")


def test_no_query_reaches_the_log(through, folder):
    through.get("/healthz", params={"signature": "very-secret"})
    end = time.monotonic() + 10
    while "/healthz" not in (text := (folder / "access.log").read_text()):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert "very-secret" not in text


def test_no_api_is_said_as_a_problem(tmp_path, problem):
    tmp_path.chmod(0o755)
    with proxying(tmp_path, free()) as port:
        answer = httpx.get(f"http://127.0.0.1:{port}/v1/jobs")
    problem(answer, 503, "unavailable")
    assert answer.headers["retry-after"] == "5"


def test_who_sends_slowly_is_closed_upon(api, tmp_path):
    """A head that goes on byte by byte, and a body that stands still. The times are shortened, so that they can be waited for."""
    tmp_path.chmod(0o755)
    post = f"POST /v1/artifacts?name=a HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.keys['alice']}\r\nContent-Length: 1000\r\n\r\n".encode()
    with proxying(tmp_path, api.port, ("client_header_timeout 15s;", "client_header_timeout 1s;"), ("client_body_timeout 75s;", "client_body_timeout 1s;")) as port:
        for begin, drop in ((b"GET /healthz HTTP/1.1\r\nX: ", b"a"), (post, b"")):
            with socket.create_connection(("127.0.0.1", port), timeout=0.3) as s:
                s.sendall(begin)
                end = time.monotonic() + 8
                while True:
                    assert time.monotonic() < end
                    try:
                        s.send(drop)
                        if not (answer := s.recv(4096)) or answer.startswith(b"HTTP/1.1 4"):
                            break
                    except TimeoutError:
                        continue
                    except ConnectionError:
                        break
