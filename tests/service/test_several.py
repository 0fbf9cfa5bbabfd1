"""Two API and three worker processes on one home: turns are taken, large jobs go where there is room for them, and a worker that dies loses nothing."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count

import httpx
import pytest
import warm
from service.running import QUICK, Service, model
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from app.api_keys import create_key
from app.db import make_engine
from app.models import Job

LARGE = 220 << 20
"""MODELPRESS_LARGE_MEMORY: between what lossless takes and what a step that changes values takes, on small inputs."""


SETTINGS = QUICK | {
    "MODELPRESS_LARGE_MEMORY": str(LARGE), "MODELPRESS_THREADS": "1", "MODELPRESS_QUEUES": "compress.cpu", "MODELPRESS_LEASE": "10", "MODELPRESS_HEARTBEAT": "1",
}  # fmt: skip


@dataclass
class Several:
    """`first` is the service of `modelpress up`, whose worker takes every queue; `second` the other API's URL; `workers` the other workers by the queues they take."""

    first: Service
    second: str
    workers: dict[str, warm.Started]
    engine: Engine

    def row(self, job_id: str) -> Job:
        with Session(self.engine, expire_on_commit=False) as s:
            return s.get_one(Job, job_id)

    def rows(self, owner: str) -> list[Job]:
        with Session(self.engine, expire_on_commit=False) as s:
            return list(s.scalars(select(Job).where(Job.owner == owner)))


@contextmanager
def part(service: Service, name: str, **own: str) -> Iterator[warm.Started]:
    """Another process of the service, on the broker that `up` has started."""
    private = (service.home / "lock").read_text()
    environment = service.environment | {"MODELPRESS_BROKER_URL": f"redis+socket://{private}/redis.sock"} | {f"MODELPRESS_{k}": v for k, v in own.items()}
    with (service.home / "logs" / f"other-{name}.log").open("ab") as log:
        process = warm.start("app.cli", name, env=environment, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def until(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def several(tmp_path_factory) -> Iterator[Several]:
    service = Service(tmp_path_factory.mktemp("several"), **SETTINGS)
    with ExitStack() as stack:
        stack.callback(service.stop)
        port = service.port + 1
        stack.enter_context(part(service, "api", PORT=str(port)))
        workers = {queues: stack.enter_context(part(service, "worker", QUEUES=queues)) for queues in ("compress.cpu", "compress.cpu.large,compress.cpu")}
        engine = make_engine(f"sqlite:///{service.home / 'modelpress.db'}")
        stack.callback(engine.dispose)
        several = Several(service, f"http://127.0.0.1:{port}", workers, engine)
        until(lambda: answers(several.second))
        let_each_work(several)
        yield several


def let_each_work(several: Several) -> None:
    """Jobs until every worker has done one: the first waits until torch is imported."""
    with client(several, several.first.url, "warm") as c:
        artifact, seeds = send(c, 1), count()

        def all_have_worked() -> bool:
            ended(several, c, [submit(c, artifact, next(seeds)) for _ in range(3)])
            return len({r.worker for r in several.rows("warm")}) == 3

        until(all_have_worked)


def client(several: Several, url: str, owner: str) -> httpx.Client:
    with Session(several.engine) as s, s.begin():
        key = create_key(s, owner)
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60)


def send(c: httpx.Client, megabytes: float) -> str:
    return c.post("/v1/artifacts", params={"name": "m.safetensors"}, content=model(megabytes)).json()["id"]


def submit(c: httpx.Client, artifact: str, seed: int, **more) -> str:
    r = c.post("/v1/jobs", json={"input": artifact, "preset": "lossless", "seed": seed} | more)
    assert r.status_code == 202, r.text
    return r.json()["id"]


def ended(several: Several, c: httpx.Client, ids: list[str]) -> list[dict]:
    for ident in ids:
        until(lambda ident=ident: c.get(f"/v1/jobs/{ident}", params={"wait": 5}).json()["state"] in ("succeeded", "failed"), 120)
    return [c.get(f"/v1/jobs/{i}").json() for i in ids]


def test_one_job_waits_for_nobodys_queue_of_jobs_and_either_api_answers(several):
    many, one = client(several, several.first.url, "many"), client(several, several.second, "one")
    with many, one:
        theirs, mine = send(many, 1), send(one, 1)
        crowd = [submit(many, theirs, seed, priority="high") for seed in range(24)]
        until(lambda: sum(r.state not in ("queued",) for r in several.rows("many")) >= 3)
        single = submit(one, mine, 0, priority="low")
        assert [j["state"] for j in ended(several, one, [single])] == ["succeeded"]
        row = several.row(single)
        between = [r for r in several.rows("many") if r.started_at and row.created_at < r.started_at < row.started_at]
        assert len(between) <= 1  # one claim may have been under way while this job was committed
        done = ended(several, many, crowd)
        assert {j["state"] for j in done} == {"succeeded"} and {j["device_used"] for j in done} == {"cpu"}
        assert len({r.worker for r in several.rows("many")}) == 3
        with httpx.Client(base_url=several.second, headers=many.headers) as other:
            assert other.get(f"/v1/jobs/{crowd[0]}").json() == done[0]
            report = other.get(f"/v1/jobs/{crowd[0]}/report", headers={"Accept": "application/json"}).json()
        assert (report["environment"]["device"], report["environment"]["threads"]) == ("cpu", 1)


def test_a_large_job_waits_for_a_worker_that_takes_such(several):
    with client(several, several.first.url, "large") as c:
        (job,) = ended(several, c, [submit(c, send(c, 2), 0, preset="w4a16")])
        row = several.row(job["id"])
        assert row.memory > LARGE and row.queue == "compress.cpu.large"
        assert f"-{several.workers['compress.cpu.large,compress.cpu'].pid}-" in row.worker


def test_a_worker_that_dies_loses_nothing(several):
    victim = several.workers["compress.cpu"]
    with client(several, several.second, "unlucky") as c:
        artifact = send(c, 30)
        ids = [submit(c, artifact, seed) for seed in range(8)]
        while True:
            until(lambda: working(several, victim))
            victim.send_signal(signal.SIGSTOP)  # from here on it hands nothing over
            if held := working(several, victim):
                break
            victim.send_signal(signal.SIGCONT)
        victim.kill()
        victim.wait()
        done = ended(several, c, ids)
        assert {j["state"] for j in done} == {"succeeded"} and len({j["output"] for j in done}) == 8
        assert [j["attempts"] for j in done if j["id"] in held] == [2]


def working(several: Several, worker: warm.Started) -> list[str]:
    """Jobs that it has claimed."""
    return [r.id for r in several.rows("unlucky") if r.state == "running" and f"-{worker.pid}-" in r.worker]
