"""Requests are counted by owner: within one process, and in Redis for several of them."""

from __future__ import annotations

import subprocess
import time

import pytest
import redis

from app.embedded import redis_server


@pytest.fixture
def broker(tmp_path):
    """A Redis of its own, on a Unix socket."""
    path = tmp_path / "r.sock"
    process = subprocess.Popen([redis_server(), "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(tmp_path)], stdout=subprocess.DEVNULL)
    for _ in range(100):
        try:
            redis.Redis(unix_socket_path=str(path)).ping()
            break
        except redis.exceptions.ConnectionError:
            time.sleep(0.05)
    yield f"redis+socket://{path}"
    process.terminate()
    process.wait()


def test_requests_over_the_rate_are_answered_429_on_all_processes_together(tmp_path, serve_api, broker, problem):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    limits = {"rate_limit": "6/hour", "broker_url": broker}
    with serve_api(tmp_path / "a", **limits) as first, serve_api(tmp_path / "b", **limits) as second:
        with first.client() as here, second.client() as there, first.client("bob") as other:
            answers = [c.get("/v1/jobs") for c in (here, there, here, there, here, there)]
            assert [a.status_code for a in answers] == [200] * 6
            assert answers[0].headers["ratelimit-policy"] == '"3600s";q=6;w=3600'
            left = [a.headers["ratelimit"].split(";")[:2] for a in answers]
            assert left == [['"3600s"', f"r={n}"] for n in (5, 4, 3, 2, 1, 0)]
            for client in (here, there):
                refused = client.get("/v1/jobs")
                problem(refused, 429, "too-many-requests")
                assert 1 <= int(refused.headers["retry-after"]) <= 3600 and ";r=0;" in refused.headers["ratelimit"]
            assert other.get("/v1/jobs").status_code == 200 and here.get("/healthz").status_code == 200


def test_without_redis_each_process_counts_by_itself(tmp_path, serve_api):
    with serve_api(tmp_path, rate_limit="2/hour", max_stored_bytes="1000", max_open_jobs="5") as api, api.client() as alice:
        usage = alice.get("/v1/usage").json()
        assert usage["max_stored_bytes"] == 1000 and usage["max_open_jobs"] == 5 and usage["stored_bytes"] == usage["open_jobs"] == 0
        assert [alice.get("/v1/jobs").status_code for _ in range(3)] == [200, 429, 429]
