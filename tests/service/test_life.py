"""The job's life under kills: real processes, real signals, nothing lost and nothing done twice."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from itertools import count

import psutil
import pytest
import warm
from service.running import TERMINAL, Service, model

_seeds = count()


@pytest.fixture(scope="module")
def large(fragile) -> str:
    """An input whose job takes about a second."""
    return fragile.upload(model(160))


def begin(s: Service, artifact: str) -> str:
    """A job that no cache answers."""
    return s.submit(artifact, preset="lossless", seed=next(_seeds))["id"]


def artifacts(s: Service) -> list[dict]:
    items, cursor = [], None
    with s.http() as c:
        while True:
            page = c.get("/v1/artifacts", params={"limit": 100} | ({"cursor": cursor} if cursor else {})).json()
            items += page["items"]
            if not (cursor := page.get("next")):
                return items


def outputs(s: Service, jobs: list[dict]) -> None:
    """Every job that succeeded has its own artifact, signed and downloadable; no other result is there."""
    made = [j["output"] for j in jobs if j["state"] == "succeeded"]
    assert len(set(made)) == len(made)
    with s.http() as c:
        for ident in made:
            assert c.get(f"/v1/artifacts/{ident}/signature").status_code == 200


@pytest.mark.parametrize("part", ["worker", "child", *(pytest.param(p, marks=pytest.mark.chaos) for p in ("zygote", "sign", "control", "redis", "api"))])
def test_sigkill_at_several_points(fragile, large, part):
    before = len(artifacts(fragile))
    jobs = []
    for delay in (0.0, 0.3, 0.8):
        job = begin(fragile, large)
        if part == "child":
            fragile.until(job, "running")
        time.sleep(delay)
        try:
            fragile.kill(part, seconds=1 if part == "child" else 20)
        except AssertionError:
            assert part == "child"  # it had ended before the signal; the job is judged all the same
        jobs.append(fragile.finish(job))
        fragile.ready()
    assert [j["state"] for j in jobs] == ["succeeded"] * 3, jobs
    outputs(fragile, jobs)
    assert len(artifacts(fragile)) == before + 3


@pytest.mark.chaos
def test_twenty_kills_in_a_row_lose_nothing_and_double_nothing(fragile):
    before, rng = len(artifacts(fragile)), random.Random(7)
    small = fragile.upload(model(30, seed=1))
    jobs = [begin(fragile, small) for _ in range(12)]
    killed = Counter()
    for _ in range(20):
        part = rng.choice(["worker", "zygote", "sign", "control", "redis", "api"])
        if part == "zygote" and fragile.pid("zygote") is None:  # one that was killed comes back with the next job
            part = "worker"
        fragile.kill(part)
        killed[part] += 1
        time.sleep(rng.uniform(0, 0.5))
    ended = [fragile.finish(j) for j in jobs]
    states = Counter(j["state"] for j in ended)
    crashed = [j for j in ended if j["state"] == "failed"]
    assert all(j["error"]["type"] == "worker-crashed" and j["attempts"] == 3 for j in crashed), crashed
    assert states["succeeded"] + len(crashed) == 12 and sum(killed.values()) == 20
    assert states["succeeded"] >= 8
    outputs(fragile, ended)
    assert len(artifacts(fragile)) == before + 1 + states["succeeded"]


def test_a_worker_that_slept_through_its_lease_writes_nothing(fragile, large):
    job = begin(fragile, large)
    fragile.until(job, "running")
    worker = fragile.kill("worker", signal.SIGSTOP)
    try:
        fragile.until(job, "queued")
    finally:
        os.kill(worker, signal.SIGCONT)
    ended = fragile.finish(job)
    assert ended["state"] == "succeeded" and ended["attempts"] == 2
    assert not [p for p in (fragile.home / "store" / "tmp" / job).rglob("*") if p.is_file()]
    outputs(fragile, [ended])


def test_cancel_ends_the_child_within_two_seconds(fragile, large):
    job = begin(fragile, large)
    fragile.until(job, "running")
    child = fragile.kill("child", 0)
    start = time.monotonic()
    with fragile.http() as c:
        r = c.post(f"/v1/jobs/{job}/cancel")
        assert r.status_code in (200, 202) and r.json()["state"] == "cancelled"
        while psutil.pid_exists(child):
            assert time.monotonic() - start < 2
            time.sleep(0.01)
        assert c.post(f"/v1/jobs/{job}/cancel").json()["state"] == "cancelled"
    time.sleep(1)
    assert fragile.job(job)["state"] == "cancelled" and fragile.job(job)["output"] is None
    assert not list((fragile.home / "scratch").glob(f"{job}-*"))


def test_a_job_that_crashes_fails_after_three_attempts_and_others_go_on(fragile, large):
    job = begin(fragile, large)
    other = begin(fragile, fragile.upload(model(1, seed=2)))
    crashes = 0
    while fragile.job(job)["state"] not in TERMINAL and crashes < 3:
        fragile.until(job, "running")
        fragile.kill("child", signal.SIGSEGV)
        crashes += 1
        while fragile.job(job)["state"] == "running" and fragile.job(job)["attempts"] == crashes:
            time.sleep(0.02)
    ended = fragile.finish(job)
    assert (ended["state"], ended["error"]["type"], ended["attempts"]) == ("failed", "worker-crashed", 3)
    assert "-11" in ended["error"]["detail"]
    assert fragile.finish(other)["state"] == "succeeded"


def test_a_drained_worker_gives_its_job_back_for_free(fragile, large):
    job = begin(fragile, large)
    fragile.until(job, "running")
    fragile.kill("worker", signal.SIGTERM)
    ended = fragile.finish(job)
    assert ended["state"] == "succeeded" and ended["attempts"] == 1


@pytest.mark.slow  # a service of its own, for what tests/worker/test_attempt.py proves of one worker
def test_a_job_past_its_deadline_fails(tmp_path):
    slow = Service(tmp_path, MODELPRESS_JOB_TIMEOUT="0.3")
    try:
        ended = slow.finish(begin(slow, slow.upload(model(160))))
        assert (ended["state"], ended["error"]["type"]) == ("failed", "deadline-exceeded")
        assert not list((tmp_path / "scratch").iterdir())
    finally:
        slow.stop()


def test_the_death_of_the_supervisor_ends_everything_and_a_second_start_finds_all(tmp_path):
    s = Service(tmp_path)
    try:
        job = s.finish(begin(s, s.upload(model(1))))
        taken = warm.run("app.cli", "up", "--port", "1", env=s.environment, timeout=30)
        assert taken.returncode != 0 and "another service" in taken.stderr
        processes = psutil.Process(s.process.pid).children(recursive=True)
        assert len(processes) >= 6
        s.process.kill()
        s.process.wait()
        _, alive = psutil.wait_procs(processes, timeout=5)
        assert not alive
        key = s.key
        s.start()
        assert s.key == key and s.job(job["id"])["state"] == "succeeded"
        processes = psutil.Process(s.process.pid).children(recursive=True)
        s.process.send_signal(signal.SIGTERM)  # as a container's end; all others of these tests end with SIGINT
        assert s.process.wait(20) == 0
        _, alive = psutil.wait_procs(processes, timeout=5)
        assert not alive
    finally:
        s.stop()
