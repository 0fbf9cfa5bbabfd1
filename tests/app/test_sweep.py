"""What the sweep mends: leases, wake-ups, orphans. A real database and a real store; no broker where none is needed."""

from __future__ import annotations

import os
import socket
import threading
import time

import pytest
from celery import Celery
from homes import KINDS, own_home
from sqlalchemy import select, update

from app import control, jobs, queue, resumable, staging, sweep
from app.config import settings
from app.db import now, session
from app.models import Job, Outbox, Upload
from app.storage import Storage


@pytest.fixture(autouse=True, params=KINDS)
def home(request, tmp_path):
    with own_home(tmp_path, request.param, storage_url=f"file://{tmp_path / 'store'}"):  # a bucket's objects cannot be made older
        yield tmp_path


@pytest.fixture
def storage(home) -> Storage:
    return Storage()


def job(state: str = "queued", **values) -> str:
    with session() as s, s.begin():
        made = Job(owner="o", spec={}, cache_key="k", state=state, **values)
        s.add(made)
        s.flush()
        return made.id


def get(job_id: str) -> Job:
    with session() as s:
        return s.get_one(Job, job_id)


def set_job(job_id: str, **values) -> None:
    with session() as s, s.begin():
        s.execute(update(Job).where(Job.id == job_id).values(**values))


def swept(step):
    with session() as s, s.begin():
        return step(s)


def topics() -> list[str]:
    with session() as s:
        return sorted(s.scalars(select(Outbox.topic)))


def age(path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def put(storage: Storage, key: str, seconds: float = 0, data: bytes = b"x") -> str:
    _, sha256 = storage.put(key, [data])
    age(settings().home / "store" / key, seconds)
    return sha256


def test_a_silent_worker_loses_its_job_and_a_busy_one_keeps_it():
    silent, busy = job("running", attempt=1, fence=1, lease_until=now() - 1), job("running", attempt=1, fence=1, lease_until=now() + 9)
    assert swept(sweep.expire) == 1
    assert (get(silent).state, get(busy).state) == ("queued", "running") and topics() == ["compress.cpu"]


def test_a_job_whose_worker_dies_three_times_fails():
    job_id = job("running", attempt=3, fence=3, lease_until=now() - 1)
    swept(sweep.expire)
    assert (get(job_id).state, get(job_id).error["type"]) == ("failed", "worker-crashed") and topics() == []


def test_signing_has_a_lease_and_attempts_of_its_own():
    again, spent = (job("signing", attempt=3, fence=4, sign_attempt=n, lease_until=now() - 1, handoff={"prefix": "tmp/a/3"}) for n in (2, 3))
    swept(sweep.expire)
    assert (get(again).state, get(spent).state, get(spent).error["type"]) == ("signing", "failed", "worker-crashed")
    swept(sweep.rewake)
    assert topics() == ["sign"]
    with session() as s, s.begin():
        assert jobs.claim_signing(s).id == again


def test_a_job_that_nobody_claims_is_woken_again_now_and_then():
    rewake = settings().rewake
    job(created_at=now())
    assert swept(sweep.rewake) == set()
    late = job(created_at=now() - rewake - 1, queue="compress.gpu")
    assert swept(sweep.rewake) == {"compress.gpu"} and topics() == ["compress.gpu"]
    assert swept(sweep.rewake) == set()
    set_job(late, woken_at=now() - rewake - 1)
    assert swept(sweep.rewake) == {"compress.gpu"}


def test_a_job_comes_home_from_the_gpu_without_the_key_of_its_results_there():
    """Whatever a stranger has written into its document: PostgreSQL cannot look into one that holds U+0000."""
    stranger, asked = job(queue="compress.gpu"), job(queue="compress.gpu")
    set_job(stranger, spec={"device": "auto", "tags": {"a\0": "\ud800"}})
    set_job(asked, spec={"device": "cuda"})
    assert swept(sweep.rehome) == 1 and topics() == ["compress.cpu"]
    assert [(get(i).queue, get(i).cache_key) for i in (stranger, asked)] == [("compress.cpu", None), ("compress.gpu", "k")]


def test_without_a_broker_the_outbox_waits_and_nobody_else_does(monkeypatch):
    """Connections to a port that nobody listens on."""
    monkeypatch.setitem(queue.app.conf, "broker_url", "redis://127.0.0.1:1/0")
    with session() as s, s.begin():
        s.add(Outbox(topic="compress.cpu"))
    start = time.monotonic()
    queue.flush_outbox()
    assert time.monotonic() - start < 3 and topics() == ["compress.cpu"]


def test_what_dead_attempts_left_goes_and_what_live_ones_need_stays(home, storage):
    old = settings().lease + 5
    running, signing, ended = job("running", fence=2), job("signing", fence=7, handoff={"prefix": "tmp/x/4"}), job("failed", fence=3)
    stay = [f"tmp/{running}/2/files/a", f"tmp/{signing}/7/sidecars/a", f"tmp/{signing}/4/files/a"]
    go = [f"tmp/{running}/1/files/a", f"tmp/{signing}/3/files/a", f"tmp/{ended}/3/files/a", "tmp/unknown/1/files/a"]
    for key in stay + go:
        put(storage, key, old)
    young = [f"tmp/{ended}/3/files/young"]
    put(storage, young[0])
    put(storage, "tmp/uploads/new", old)
    put(storage, "tmp/uploads/broken-off", settings().orphan_age + 5)
    folders = {f"{running}-2": True, f"{running}-1": False, f"{ended}-3": False}
    for name in folders:
        (settings().scratch / name / "in").mkdir(parents=True)
        age(settings().scratch / name, old)
    (settings().scratch / f"{ended}-9").mkdir()
    sweep.drop_orphans(storage)
    assert sorted(f.key for f in storage.list("tmp")) == sorted([*stay, *young, "tmp/uploads/new"])
    assert sorted(p.name for p in settings().scratch.iterdir()) == sorted([f"{running}-2", f"{ended}-9"])


def test_a_claim_that_came_while_orphans_are_looked_for_keeps_its_files(storage, monkeypatch):
    """As in a listing that takes longer than a lease: what was young when the claims were read is old at its end."""
    key = f"tmp/{job('queued')}/1/files/a"
    put(storage, key)

    def slow(real=sweep.live_claims, clock=time.time):
        monkeypatch.setattr(sweep.time, "time", lambda: clock() + settings().lease + 5)
        return real()

    monkeypatch.setattr(sweep, "live_claims", slow)
    sweep.drop_orphans(storage)
    assert [f.key for f in storage.list("tmp")] == [key]


def test_two_sweeps_at_once_do_no_harm():
    """Both see the same lapsed lease; the job is given back once."""
    job_id = job("running", attempt=1, fence=1, lease_until=now() - 1)
    swept(sweep.expire)
    with session() as s, s.begin():
        assert jobs.requeue(s, job_id, 1, why="its worker went silent") is False
    assert (get(job_id).state, get(job_id).attempt, topics()) == ("queued", 1, ["compress.cpu"])


def test_one_thread_waits_for_a_broker_that_does_not_answer(monkeypatch):
    """A broker that takes connections and says nothing: the first caller waits, the others are back at once, and what they wanted is tried."""
    tried = []
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        monkeypatch.setitem(queue.app.conf, "broker_url", f"redis://127.0.0.1:{deaf.getsockname()[1]}/0")
        monkeypatch.setattr(queue, "wake", lambda topic, count, wake=queue.wake: (tried.append(topic), wake(topic, count)))
        with session() as s, s.begin():
            s.add(Outbox(topic="compress.cpu"))
        first = threading.Thread(target=queue.flush_outbox)
        first.start()
        while not tried:
            time.sleep(0.01)
        start = time.monotonic()
        for _ in range(50):
            queue.flush_outbox()
        assert time.monotonic() - start < 0.5
        first.join(30)
        assert not first.is_alive() and len(tried) == 2 and topics() == ["compress.cpu"]


def test_wake_ups_that_nobody_takes_do_not_pile_up(monkeypatch):
    broker = Celery("broker", broker="memory://")
    monkeypatch.setattr(queue, "app", broker)
    for _ in range(5):
        with session() as s, s.begin():
            s.add_all([Outbox(topic="compress.nobody") for _ in range(30)])
        queue.flush_outbox()
    with broker.connection() as c:
        assert 1 <= c.default_channel.queue_declare(queue="compress.nobody").message_count <= 32 and topics() == []
        c.default_channel.queue_purge("compress.nobody")


def test_the_whole_sweep_is_one_task(monkeypatch):
    monkeypatch.setitem(queue.app.conf, "broker_url", "redis://127.0.0.1:1/0")
    job_id = job("running", attempt=1, fence=1, lease_until=now() - 1)
    control.run()
    assert get(job_id).state == "queued"


def upload(storage: Storage, **values) -> Upload:
    made = resumable.create(storage, owner="o", name="a.json", kind="model", length=10, sha256=None, metadata="")
    with session() as s, s.begin():
        s.execute(update(Upload).where(Upload.id == made.id).values(**values))
    return made


def test_an_upload_that_may_go_on_is_left_alone_and_an_expired_one_goes(storage):
    alive, expired = upload(storage, received=3), upload(storage, expires_at=time.time() - 1)
    for one in (alive, expired):
        age(settings().home / "store" / staging.key_of(one.id), 10 * settings().orphan_age)
    left = put(storage, "tmp/uploads/00000000-0000-4000-8000-000000000000", 10 * settings().orphan_age)
    assert sweep.drop_orphans(storage) == 2 and left
    assert [found.key for found in storage.list("tmp/uploads")] == [staging.key_of(alive.id)]
    with session() as s:
        assert [*s.scalars(select(Upload.id))] == [alive.id]
