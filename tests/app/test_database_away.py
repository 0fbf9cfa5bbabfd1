"""A PostgreSQL that is stopped, restarted, killed, full or read-only under a running API: 503 with Retry-After, and work again by itself."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import ExitStack

import psycopg
import pytest
from homes import own_home
from postgres import running
from sqlalchemy import select, text

from app.db import engine, make_engine, now, session
from app.models import Job

MODEL = {"preset": "lossless"}


@pytest.fixture(scope="module")
def postgres():
    with running(max_connections="12") as made:
        yield made


@pytest.fixture(scope="module")
def name(postgres):
    return postgres.create()


@pytest.fixture(scope="module")
def client(postgres, name, serve_api, tmp_path_factory):
    with serve_api(tmp_path_factory.mktemp("home"), database=postgres.url(name)) as api, api.client() as made:
        made.headers["Connection"] = "close"  # an answer that comes before the body was read ends the connection
        yield made


@pytest.fixture(scope="module")
def artifact(client, model) -> str:
    return client.post("/v1/artifacts", params={"name": "m.safetensors"}, content=model()).json()["id"]


def away(answer, problem) -> bool:
    """Whether it says so, as it should; it is nothing else but done."""
    if answer.status_code < 300:
        return False
    problem(answer, 503, "unavailable")
    assert int(answer.headers["retry-after"]) > 0
    return True


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGQUIT])
def test_every_call_says_that_it_is_away_and_works_again(client, artifact, postgres, problem, model, sig):
    job = client.post("/v1/jobs", json={"input": artifact} | MODEL).json()["id"]
    postgres.stop(sig)
    try:
        for answer in (
            client.get("/v1/jobs"), client.get(f"/v1/jobs/{job}"), client.post(f"/v1/jobs/{job}/cancel"), client.post("/v1/jobs", json={"input": artifact} | MODEL),
            client.get(f"/v1/artifacts/{artifact}/files/m.safetensors"), client.delete(f"/v1/artifacts/{artifact}"),
            client.post("/v1/artifacts", params={"name": "m.safetensors"}, content=model()),
        ):  # fmt: skip
            assert away(answer, problem)
        assert client.get("/healthz").status_code == 200 and client.get("/readyz").json()["checks"]["database"] != "ok"
    finally:
        postgres.start()
    assert client.get("/readyz").json()["checks"]["database"] == "ok"
    assert client.get(f"/v1/jobs/{job}").json()["state"] == "queued" and client.get(f"/v1/artifacts/{artifact}").status_code == 200


def test_a_waiting_client_waits_through_a_restart(client, artifact, postgres):
    job = client.post("/v1/jobs", json={"input": artifact} | MODEL).json()["id"]
    got = []
    waiting = threading.Thread(target=lambda: got.append(client.get(f"/v1/jobs/{job}", params={"wait": 20})))
    waiting.start()
    time.sleep(0.3)
    postgres.stop()
    postgres.start()
    client.post(f"/v1/jobs/{job}/cancel")
    waiting.join(30)
    assert got[0].json()["state"] == "cancelled"


@pytest.mark.parametrize("how", ["terminated", "restarted"])
def test_a_submission_in_the_middle_of_its_transaction(client, artifact, postgres, name, problem, how):
    """It waits for the input's lock when its connection breaks: it is done once, or said not to be."""
    before = postgres.ask("select count(*) from jobs", name)[0][0]
    got = []
    blocker = psycopg.connect(postgres.url(name))
    blocker.execute("select id from artifacts for update")
    submitting = threading.Thread(target=lambda: got.append(client.post("/v1/jobs", json={"input": artifact} | MODEL)))
    submitting.start()
    while not postgres.ask("select pid from pg_stat_activity where wait_event_type = 'Lock'", name):
        time.sleep(0.02)
    postgres.terminate(name) if how == "terminated" else (postgres.stop(), postgres.start())
    submitting.join(30)
    blocker.close()
    done = not away(got[0], problem)
    assert postgres.ask("select count(*) from jobs", name)[0][0] == before + done
    assert done or how == "restarted"  # a restart may take longer than a request is held for


def test_a_read_only_server_answers_reads_and_is_away_for_writes(client, artifact, postgres, name, problem):
    postgres.ask(f"alter database {name} set default_transaction_read_only = on")
    postgres.terminate(name)
    try:
        assert away(client.post("/v1/jobs", json={"input": artifact} | MODEL), problem)
        assert client.get(f"/v1/artifacts/{artifact}").status_code == 200
    finally:
        postgres.ask(f"alter database {name} reset default_transaction_read_only")
        postgres.terminate(name)
    assert not away(client.post("/v1/jobs", json={"input": artifact} | MODEL), problem)


def test_a_server_without_a_free_connection_is_away(client, postgres, name, problem):
    end = time.monotonic() + 30
    while True:  # what was ended just now gives its place back a little later, and the service may be the one that gets it
        postgres.terminate(name)
        with ExitStack() as held:
            with pytest.raises(psycopg.OperationalError, match="too many|reserved"):
                while True:
                    held.enter_context(psycopg.connect(postgres.url(name)))
            if away(client.get("/v1/jobs"), problem):
                break
        assert time.monotonic() < end
    assert not away(client.get("/v1/jobs"), problem)


def test_a_transaction_left_open_by_a_vanished_client_lets_go_of_its_locks(postgres, name):
    """As the engine asks for it, with a shorter time: who stays silent in the middle of a transaction loses it, and the next one gets the lock."""
    made = make_engine(postgres.url(name) + "?options=-c%20idle_in_transaction_session_timeout%3D200")
    with made.connect() as silent, psycopg.connect(postgres.url(name)) as next_one:
        silent.exec_driver_sql("select id from artifacts for update")
        next_one.execute("set lock_timeout = '10s'")
        assert next_one.execute("select id from artifacts for update").fetchall()
        silent.invalidate()
    made.dispose()
    with make_engine(postgres.url(name)).connect() as c:
        told = {n: c.exec_driver_sql(f"show {n}").scalar_one() for n in ("idle_in_transaction_session_timeout", "lock_timeout", "statement_timeout")}
    assert "0" not in told.values()


def test_indexes_serve_what_is_asked_by_the_clock(tmp_path):
    """`now()` is one value in a statement, so that an index on a time can be used."""
    with own_home(tmp_path, "postgresql"), session() as s:
        s.connection().exec_driver_sql("set local enable_seqscan = off")
        asked = str(select(Job.id).where(Job.expires_at < now()).compile(engine()))
        plan = "\n".join(s.scalars(text("explain " + asked)))
        assert "Index Cond: (expires_at <" in plan, plan
