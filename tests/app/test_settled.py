"""COMMITs whose answer never comes, on a real PostgreSQL behind a proxy that loses it: what was asked for has happened, and happened once."""

from __future__ import annotations

import pytest
from homes import KINDS, own_home
from lossy import HOW, lossy
from postgres import server
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError, OperationalError

from app import jobs
from app.db import session
from app.models import Artifact, Blob, Job, Outbox
from app.settled import settled

MODEL = {"preset": "lossless"}


@pytest.fixture(scope="module")
def way():
    with lossy(server().port) as made:
        yield made


@pytest.fixture(scope="module")
def service(way, serve_api, tmp_path_factory):
    """An API whose way to its database is lossy."""
    with serve_api(tmp_path_factory.mktemp("home"), "postgresql", way.port) as api, api.client() as client:
        client.headers["Connection"] = "close"  # the API may close one that was idle while a test was slow
        yield api, client
    way.spoil("answer lost", times=0)


@pytest.fixture
def direct(service):
    """The database's own rows, by no lossy way."""
    name = service[0].engine.url.database
    return lambda query: server().ask(query, name)


@pytest.fixture
def home(way, tmp_path):
    with own_home(tmp_path, "postgresql", way.port):
        yield tmp_path


def upload(client, model) -> str:
    return client.post("/v1/artifacts", params={"name": "m.safetensors"}, content=model()).json()["id"]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("after", [0, 1])
def test_an_upload_makes_one_artifact(way, service, direct, model, how, after):
    api, client = service
    before = direct("select count(*) from artifacts")[0][0]
    way.spoil(how, after)
    made = client.post("/v1/artifacts", params={"name": "m.safetensors"}, content=model())
    assert made.status_code == 201 and way.times == 0, made.text
    assert direct("select count(*) from artifacts")[0][0] == before + 1
    got = client.get(f"/v1/artifacts/{made.json()['id']}").json()
    assert got == made.json() and client.get(f"/v1/artifacts/{got['id']}/files/m.safetensors").content == model()


@pytest.mark.parametrize("how", HOW)
def test_a_folder_is_composed_once(way, service, direct, model, how):
    api, client = service
    part = upload(client, model)
    before = direct("select count(*) from artifacts")[0][0]
    way.spoil(how)
    made = client.post("/v1/artifacts", json={"files": [{"path": "a.safetensors", "artifact": part}]})
    assert made.status_code == 201 and way.times == 0 and direct("select count(*) from artifacts")[0][0] == before + 1
    assert client.get(f"/v1/artifacts/{made.json()['id']}").json() == made.json()


@pytest.mark.parametrize("how", HOW)
def test_a_job_is_submitted_and_cancelled_once(way, service, direct, model, how):
    api, client = service
    spec = {"input": upload(client, model)} | MODEL
    jobs_before, woken_before = direct("select count(*) from jobs")[0][0], direct("select count(*) from outbox")[0][0]
    way.spoil(how)
    made = client.post("/v1/jobs", json=spec)
    assert made.status_code == 202 and way.times == 0, made.text
    ident = made.json()["id"]
    assert (direct("select count(*) from jobs")[0][0], direct("select count(*) from outbox")[0][0]) == (jobs_before + 1, woken_before + 1)
    assert client.get(f"/v1/jobs/{ident}").json() == made.json()
    way.spoil(how)
    assert client.post(f"/v1/jobs/{ident}/cancel").json()["state"] == "cancelled" and way.times == 0
    assert direct(f"select state, fence from jobs where id = '{ident}'") == [("cancelled", 1)]


@pytest.mark.parametrize("how", HOW)
def test_an_artifact_is_deleted(way, service, direct, model, how):
    api, client = service
    ident = upload(client, model)
    way.spoil(how)
    assert client.delete(f"/v1/artifacts/{ident}").status_code == 204 and way.times == 0
    assert client.get(f"/v1/artifacts/{ident}").status_code == 404


def test_answers_that_stay_away_are_told_as_such(way, service, model, problem):
    api, client = service
    spec = {"input": upload(client, model)} | MODEL
    way.spoil("commit lost", times=1000)
    answer = client.post("/v1/jobs", json=spec)
    problem(answer, 503, "unavailable")
    assert int(answer.headers["retry-after"]) > 0
    way.spoil("commit lost", times=0)
    assert client.post("/v1/jobs", json=spec).status_code == 202


def submitted() -> str:
    with session() as s, s.begin():
        return jobs.submit(s, owner="o", input_id=None, spec={}, queue="compress.cpu", cache_key="k").id


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("costs_attempt", [True, False])
def test_a_job_is_given_back_once(way, home, how, costs_attempt):
    ident = submitted()
    settled(lambda s: jobs.claim(s, "compress.cpu"))
    way.spoil(how)
    settled(lambda s: jobs.requeue(s, ident, 1, why="x", costs_attempt=costs_attempt))
    with session() as s:
        job = s.get_one(Job, ident)
        assert (way.times, job.state, job.fence, job.attempt) == (0, "queued", 1, int(costs_attempt))
        assert s.scalar(select(func.count()).select_from(Outbox)) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_wrong_with_the_work_is_raised_at_once(tmp_path, kind):
    """A statement that cannot be carried out, an id that is taken: neither is tried again."""
    with own_home(tmp_path, kind):
        ident, runs = submitted(), []
        for wrong in (lambda s: s.add(Job(id=ident, owner="o", spec={})), lambda s: s.add(Blob(sha256="0" * 64, size=None))):
            with pytest.raises(IntegrityError):
                settled(lambda s: (runs.append(1), wrong(s)))
        assert len(runs) == 2


def test_a_database_that_stays_away_is_raised_in_the_end(home, way):
    way.spoil("commit lost", times=1000)
    with pytest.raises(OperationalError):
        settled(lambda s: s.get(Artifact, "x"), seconds=0.3)
    way.spoil("commit lost", times=0)


FAILS = """
create function fail() returns trigger language plpgsql as $$
begin if random() < 0.1 then raise exception 'injected' using errcode = '40001'; end if; return new; end $$;
create trigger fail before insert or update on jobs for each row execute function fail();
"""


@pytest.mark.slow
def test_serialization_failures_are_nobodys_business(serve_api, tmp_path, model):
    """One write in ten is refused, as PostgreSQL refuses it to break a deadlock."""
    with serve_api(tmp_path, "postgresql") as api, api.client() as client:
        spec = {"input": upload(client, model)} | MODEL
        server().ask(FAILS, api.engine.url.database)
        made = [client.post("/v1/jobs", json=spec | {"seed": i}) for i in range(60)]
        ended = [client.post(f"/v1/jobs/{r.json()['id']}/cancel") for r in made]
        assert {r.status_code for r in made} == {202} and {r.json()["state"] for r in ended} == {"cancelled"}
        assert server().ask("select count(*), count(distinct id), sum(fence) from jobs", api.engine.url.database) == [(60, 60, 60)]
