"""Faults around the processes: the broker that is empty, silent or full of nonsense, the clock's keeper that dies, a port or a home that is taken."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import psutil
import pytest
import redis
import warm
from service.running import Service, model

_seeds = count(10_000)


@pytest.fixture(scope="module")
def small(fragile) -> str:
    return fragile.upload(model(2, seed=3))


@pytest.fixture(scope="module")
def large(fragile) -> str:
    """An input whose job takes about a second."""
    return fragile.upload(model(160, seed=4))


@contextlib.contextmanager
def broker(s: Service):
    url = psutil.Process(s.pid("api")).environ()["MODELPRESS_BROKER_URL"]
    with redis.Redis(unix_socket_path=url.partition("://")[2]) as client:
        yield client


def begin(s: Service, artifact: str, number: int) -> list[str]:
    return [s.submit(artifact, preset="lossless", seed=next(_seeds))["id"] for _ in range(number)]


def all_succeed(s: Service, jobs: list[str], seconds: float = 60) -> None:
    ended = [s.finish(j, seconds) for j in jobs]
    assert [j["state"] for j in ended] == ["succeeded"] * len(jobs), ended
    assert len({j["output"] for j in ended}) == len(jobs) and all(j["attempts"] == 1 for j in ended)


def test_a_flushed_broker_loses_no_job(fragile, small):
    jobs = begin(fragile, small, 12)
    with broker(fragile) as r:
        r.flushall()
    all_succeed(fragile, jobs)


def test_wake_ups_that_come_thrice_or_make_no_sense_do_nothing(fragile, small):
    with broker(fragile) as r:
        r.lpush("compress.cpu", b"no message at all")
        r.lpush("sign", b"{}")
    jobs = begin(fragile, small, 3)
    environment = os.environ | {"MODELPRESS_BROKER_URL": psutil.Process(fragile.pid("api")).environ()["MODELPRESS_BROKER_URL"]}
    wakes = "from app.queue import app, wake; [wake(t) for t in ('compress.cpu', 'sign', 'control') * 5]"
    subprocess.run([sys.executable, "-c", wakes + "; app.send_task('no.such', queue='compress.cpu')"], env=environment, check=True, timeout=30)
    all_succeed(fragile, jobs)
    fragile.ready()


def test_a_silent_broker_holds_up_nobody(fragile, small):
    """Twenty clients at once: none waits for the broker, and all their jobs run once it speaks again."""
    stopped = fragile.kill("redis", signal.SIGSTOP)
    try:
        slowest = 0.0

        def one(_) -> str:
            nonlocal slowest
            start = time.monotonic()
            job = begin(fragile, small, 1)[0]
            slowest = max(slowest, time.monotonic() - start)
            return job

        with ThreadPoolExecutor(20) as clients:
            jobs = list(clients.map(one, range(20)))
        start = time.monotonic()
        assert fragile.job(jobs[0])["state"] == "queued"
        assert time.monotonic() - start < 2 and slowest < 4
        with fragile.http() as c:
            assert c.get("/readyz").status_code == 503
    finally:
        os.kill(stopped, signal.SIGCONT)
    all_succeed(fragile, jobs)


def test_the_sweep_survives_its_beat(fragile, large):
    (beat,) = psutil.Process(fragile.pid("control")).children()
    beat.kill()
    psutil.wait_procs([beat], 5)
    job = begin(fragile, large, 1)[0]
    fragile.until(job, "running")
    fragile.kill("worker")
    ended = fragile.finish(job)  # only a sweep gives it to another worker
    assert (ended["state"], ended["attempts"]) == ("succeeded", 2)


def test_a_job_that_kills_its_worker_each_time_fails_and_the_next_one_runs(fragile, small, large):
    job = begin(fragile, large, 1)[0]
    for attempt in (1, 2, 3):
        while (told := fragile.job(job))["state"] != "running" or told["attempts"] != attempt:
            assert told["state"] in ("queued", "running"), told
            time.sleep(0.02)
        fragile.kill("worker")
    ended = fragile.finish(job)
    assert (ended["state"], ended["error"]["type"], ended["attempts"]) == ("failed", "worker-crashed", 3)
    all_succeed(fragile, begin(fragile, small, 1))


def test_nothing_is_left_behind_once_the_faults_are_over(fragile, small):
    """After all the above: no scratch folder, nothing in `tmp/`, no half-written object."""
    all_succeed(fragile, begin(fragile, small, 1))
    store, end = fragile.home / "store", time.monotonic() + 30
    while left := [*(fragile.home / "scratch").iterdir(), *(p for p in store.rglob("*") if p.is_file() and "blobs" not in p.parts)]:
        assert time.monotonic() < end, left
        time.sleep(0.2)


def up(home: Path, port: int) -> subprocess.CompletedProcess:
    return warm.run("app.cli", "up", "--port", str(port), env=os.environ | {"MODELPRESS_HOME": str(home)}, timeout=30)


def test_a_taken_port_is_refused_at_once(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused = up(tmp_path, taken.getsockname()[1])
    assert refused.returncode != 0 and "--port" in refused.stderr and "Traceback" not in refused.stderr


def test_a_taken_home_is_refused_and_keeps_its_lock(fragile):
    for _ in range(2):
        refused = up(fragile.home, 1)
        assert refused.returncode != 0 and "--home" in refused.stderr and "Traceback" not in refused.stderr
    assert fragile.process.poll() is None
    private = Path((fragile.home / "lock").read_text())
    assert private.is_dir() and private.stat().st_mode & 0o777 == 0o700
