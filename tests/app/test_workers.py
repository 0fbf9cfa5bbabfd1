"""The registry of workers on a real database, and what the API makes of it."""

from __future__ import annotations

import pytest
from homes import own_home
from sqlalchemy import delete, select, update

from app import workers
from app.config import settings
from app.db import now, session
from app.models import Worker


@pytest.fixture
def home(tmp_path):
    with own_home(tmp_path) as folder:
        yield folder


def worker(ident: str, *queues: str, holds: bool = True) -> Worker:
    return Worker(id=ident, queues=list(queues), device="cpu", memory=1 << 30, threads=2, jail={"holds": holds}, version="1")


def do(step, *args):
    with session() as s, s.begin():
        return step(s, *args)


def unseen(ident: str, seconds: float) -> None:
    with session() as s, s.begin():
        s.execute(update(Worker).where(Worker.id == ident).values(seen_at=now() - seconds))


def test_it_comes_is_seen_and_leaves(home):
    assert do(workers.seen, "a") is False and do(workers.live) == []
    do(workers.register, worker("a", "compress.cpu"))
    do(workers.register, worker("a", "compress.cpu"))
    assert [w.id for w in do(workers.live)] == ["a"] and do(workers.seen, "a") is True
    do(workers.leave, "a")
    do(workers.leave, "a")
    assert do(workers.live) == [] and do(workers.seen, "a") is False


def test_one_that_is_silent_is_soon_not_live_and_later_forgotten(home):
    for ident in ("a", "b"):
        do(workers.register, worker(ident, "compress.cpu"))
    unseen("a", 3 * settings().heartbeat + 1)
    do(workers.forget)
    assert [w.id for w in do(workers.live)] == ["b"]
    assert do(workers.seen, "a") is True and len(do(workers.live)) == 2  # it had only been slow
    unseen("a", 21 * settings().lease)
    do(workers.forget)
    assert do(workers.seen, "a") is False and do(workers.seen, "b") is True


def test_who_serves_a_queue(home):
    do(workers.register, worker("a", "compress.cpu", "compress.cpu.large"))
    do(workers.register, worker("b", "compress.cpu"))
    do(workers.register, worker("c", holds=False))
    assert [w.id for w in do(workers.serving, ["compress.cpu"])] == ["a", "b"]
    assert [w.id for w in do(workers.serving, ["compress.gpu", "compress.cpu.large"])] == ["a"]
    assert do(workers.serving, ["compress.gpu"]) == []


@pytest.fixture
def rows(api):
    """Puts workers into the API's database, and takes them away."""

    def put(*made: Worker) -> None:
        with api.session() as s, s.begin():
            s.add_all(made)

    yield put
    with api.session() as s, s.begin():
        s.execute(delete(Worker))


def test_cuda_is_taken_while_a_worker_has_a_gpu(alice, model, problem, rows):
    ident = alice.post("/v1/artifacts", params={"name": "m.safetensors"}, content=model()).json()["id"]
    spec = {"input": ident, "preset": "lossless", "device": "cuda"}
    rows(worker("a", "compress.cpu"))
    assert "no worker" in problem(alice.post("/v1/jobs", json=spec), 422, "invalid-job-spec", "/device")["detail"]
    rows(worker("b", "compress.gpu"))
    taken = alice.post("/v1/jobs", json=spec)
    assert taken.status_code == 202
    alice.post(f"/v1/jobs/{taken.json()['id']}/cancel")


def test_the_service_is_ready_with_a_worker_whose_jail_holds(nobody, rows):
    def jail() -> str:
        return nobody.get("/readyz").json()["checks"]["jail"]

    none = jail()
    rows(worker("a", holds=False))
    broken = jail()
    rows(worker("b", "compress.cpu"))
    assert jail() == "ok" and len({none, broken, "ok"}) == 3


def test_the_registry_is_what_the_rows_are(home):
    do(workers.register, worker("a", "compress.cpu"))
    with session() as s:
        row = s.scalars(select(Worker)).one()
        assert (row.queues, row.device, row.threads, row.jail) == (["compress.cpu"], "cpu", 2, {"holds": True}) and row.seen_at >= row.started_at
