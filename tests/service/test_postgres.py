"""A whole service on a PostgreSQL that is restarted and whose connections are killed while jobs run: nothing is lost, nothing done twice."""

from __future__ import annotations

import random
import signal
import time

import httpx
import pytest
from postgres import running
from service.running import QUICK, Service, model


@pytest.fixture(scope="module")
def postgres():
    with running() as made:
        yield made


@pytest.fixture(scope="module")
def name(postgres):
    return postgres.create()


@pytest.fixture(scope="module")
def fragile(postgres, name, tmp_path_factory):
    made = Service(tmp_path_factory.mktemp("postgres"), **QUICK | {"MODELPRESS_DATABASE_URL": postgres.url(name)})
    yield made
    made.stop()


@pytest.mark.chaos
def test_ten_restarts_lose_nothing_and_double_nothing(fragile, postgres, name):
    """Half of them in order, half as a crash; connections are killed in between."""
    small, large = fragile.upload(model(4)), fragile.upload(model(120))
    rng, jobs, answers = random.Random(3), [], set()
    for i in range(10):
        jobs += [fragile.submit(small if i % 3 else large, preset="lossless", seed=i)["id"]]
        time.sleep(rng.uniform(0, 0.4))
        postgres.stop(rng.choice([signal.SIGINT, signal.SIGQUIT]))
        with fragile.http() as c:
            answers |= {(r.status_code, "retry-after" in r.headers) for r in (c.get(f"/v1/jobs/{jobs[-1]}"), c.get("/v1/jobs"))}
        postgres.start()
        if i % 2:
            postgres.terminate(name)
    assert answers == {(503, True)}
    ended = [fragile.finish(job) for job in jobs]
    assert [j["state"] for j in ended] == ["succeeded"] * 10, [j for j in ended if j["state"] != "succeeded"]
    assert postgres.ask("select count(*), count(distinct output_id) from jobs where state = 'succeeded'", name) == [(10, 10)]
    assert postgres.ask("select count(*) from artifacts", name) == [(12,)]  # two inputs, ten results
    fragile.ready()
    assert fragile.process.poll() is None


def test_a_restart_while_a_job_runs_costs_it_no_attempt(fragile, postgres):
    """It takes less than a lease, and the worker goes on."""
    job = fragile.submit(fragile.upload(model(200, seed=5)), preset="lossless", seed=99)["id"]
    fragile.until(job, "running")
    postgres.stop()
    postgres.start()
    ended = fragile.finish(job)
    assert (ended["state"], ended["attempts"]) == ("succeeded", 1)


@pytest.mark.chaos
def test_a_service_outlives_a_database_that_is_away_for_longer_than_a_lease(fragile, postgres):
    job = fragile.submit(fragile.upload(model(200, seed=6)), preset="lossless", seed=98)["id"]
    fragile.until(job, "running")
    postgres.stop(signal.SIGQUIT)
    time.sleep(1.5 * float(QUICK["MODELPRESS_LEASE"]))
    assert httpx.get(f"{fragile.url}/readyz").json()["checks"]["database"] != "ok"
    postgres.start()
    ended = fragile.finish(job)
    assert ended["state"] == "succeeded" and ended["attempts"] <= 2
