"""Comparisons: several jobs on one input made at once, taken one after another, and told in one table; over HTTP and on both databases."""

from __future__ import annotations

import json
import threading
import time
import uuid

import pytest
from homes import KINDS, own_home
from sqlalchemy import func, select, update

from app import jobs, retention
from app.comparing import MAX_RECIPES, label
from app.db import now, session
from app.models import Comparison, Job, Outbox
from app.queues import CPU

LARGE, SMALL = CPU
PRUNE = {"steps": [{"method": "prune", "sparsity": 0.5}]}
FOUR = {"steps": [{"method": "quantize", "num_bits": 4}]}


@pytest.fixture(scope="module")
def artifact(alice, model) -> str:
    return alice.post("/v1/artifacts", params={"name": "m.safetensors"}, content=model({"fc.weight": ("F32", [4, 8]), "fc.bias": ("F32", [4])})).json()["id"]


def submit(client, artifact, recipes, headers=None, **more):
    return client.post("/v1/comparisons", json={"input": artifact, "recipes": recipes} | more, headers=headers)


def count(api) -> tuple[int, int]:
    with api.session() as s:
        return tuple(s.scalar(select(func.count()).select_from(model)) for model in (Job, Comparison))


def test_every_recipe_becomes_a_job(alice, artifact):
    named = {"name": "ours", "recipe": FOUR, "output": {"format": "safetensors"}}
    r = submit(alice, artifact, ["w4a16", PRUNE, named], seed=7, tags={"run": "1"})
    made = r.json()
    assert r.status_code == 202 and r.headers["location"] == f"/v1/comparisons/{made['id']}" and "retry-after" in r.headers
    assert made["state"] == "running" and [row["name"] for row in made["rows"]] == ["w4a16", "prune 0.5", "ours"]
    assert [row["output_format"] for row in made["rows"]] == ["packed", "packed", "safetensors"]
    for row in made["rows"]:
        job = alice.get(f"/v1/jobs/{row['job']}").json()
        assert (job["comparison"], job["state"], job["seed"], job["tags"], job["input"]) == (made["id"], "queued", 7, {"run": "1"}, artifact)
        assert job["recipe"] == row["recipe"] and row["bytes_after"] is None and row["seconds"] == {}
    assert alice.get(f"/v1/comparisons/{made['id']}").json() == made


@pytest.mark.parametrize(
    "recipes, more, kind, pointer",
    [
        ([], {}, "invalid-job-spec", "/recipes"),
        (["lossless"] * (MAX_RECIPES + 1), {}, "invalid-job-spec", "/recipes"),
        ("lossless", {}, "invalid-job-spec", "/recipes"),
        (["lossless", "w5"], {}, "invalid-job-spec", "/recipes/1"),
        (["lossless", 3], {}, "invalid-job-spec", "/recipes/1"),
        (["lossless", {"preset": "w5"}], {}, "invalid-job-spec", "/recipes/1/preset"),
        ([PRUNE, {"steps": [{"method": "quantize", "num_bits": 9}]}], {}, "invalid-job-spec", "/recipes/1/steps/0/num_bits"),
        ([PRUNE, {"recipe": {"steps": [{"method": "quantize", "num_bits": 9}]}}], {}, "invalid-job-spec", "/recipes/1/recipe/steps/0/num_bits"),
        ([PRUNE, {"steps": [{"method": "prune", "targets": ["no.*"]}]}], {}, "no-tensor-matched", "/recipes/1/steps/0/targets"),
        ([PRUNE, {"steps": [{"method": "prune", "saliency": "fisher"}]}], {}, "invalid-job-spec", "/calibration"),
        ([PRUNE, {"recipe": PRUNE, "seed": 1}], {}, "invalid-job-spec", "/recipes/1"),
        ([PRUNE, {"recipe": PRUNE, "name": ""}], {}, "invalid-job-spec", "/recipes/1/name"),
        ([PRUNE, {"recipe": PRUNE, "output": {"format": "gguf"}}], {}, "invalid-job-spec", "/recipes/1/output/format"),
        ([PRUNE, "lossless"], {"output": {"format": "safetensors"}}, "invalid-job-spec", "/output/format"),
        ([PRUNE], {"seed": -1}, "invalid-job-spec", "/seed"),
        ([PRUNE], {"recipe": PRUNE}, "invalid-job-spec", "/recipe"),
        ([PRUNE], {"preset": "int8"}, "invalid-job-spec", "/preset"),
        ([PRUNE], {"device": "cuda"}, "invalid-job-spec", "/device"),
        ([PRUNE], {"calibration": str(uuid.uuid4())}, "not-found", "/calibration"),
        ([PRUNE, "auto"], {}, "invalid-job-spec", "/recipes/1"),
        ([PRUNE, {"preset": "auto", "budget": {"ratio": 1}}], {}, "invalid-job-spec", "/recipes/1/budget/ratio"),
        ([{"preset": "w4a16", "budget": {"ratio": 4}}], {}, "invalid-job-spec", "/recipes/0/budget"),
        ([PRUNE], {"budget": {"ratio": 4}}, "invalid-job-spec", "/budget"),
        ([PRUNE], {"input": str(uuid.uuid4())}, "not-found", "/input"),
        ([PRUNE], {"input": 3}, "invalid-job-spec", "/input"),
    ],
)
def test_one_wrong_recipe_and_no_job_is_made(api, alice, artifact, problem, recipes, more, kind, pointer):
    before = count(api)
    problem(submit(alice, artifact, recipes, **more), 404 if kind == "not-found" else 422, kind, pointer)
    assert count(api) == before


def test_budgets_are_compared(alice, artifact):
    made = submit(alice, artifact, [{"name": f"{r} to 1", "preset": "auto", "budget": {"ratio": r}} for r in (4, 5)]).json()
    budgets = [alice.get(f"/v1/jobs/{row['job']}").json()["budget"] for row in made["rows"]]
    assert [row["name"] for row in made["rows"]] == ["4 to 1", "5 to 1"] and budgets == [{"ratio": 4}, {"ratio": 5}]


def test_bodies_that_are_no_comparisons(alice, problem):
    problem(alice.post("/v1/comparisons", json=[]), 422, "invalid-job-spec")
    problem(alice.post("/v1/comparisons", json={"recipes": ["lossless"]}), 422, "invalid-job-spec", "/input")
    problem(alice.post("/v1/comparisons", content=b"{", headers={"Content-Type": "application/json"}), 400, "malformed-json")


def test_strangers_get_nothing(alice, bob, nobody, artifact, problem):
    ident = submit(alice, artifact, ["lossless"]).json()["id"]
    same = {"X-Request-Id": "same"}
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel")):
        foreign, unknown = (bob.request(method, f"/v1/comparisons/{i}{path}", headers=same) for i in (ident, str(uuid.uuid4())))
        problem(foreign, 404, "not-found")
        assert foreign.content == unknown.content
    assert nobody.get(f"/v1/comparisons/{ident}").status_code == 401
    assert ident not in bob.get("/v1/comparisons").text and ident in alice.get("/v1/comparisons").text
    problem(submit(bob, artifact, ["lossless"]), 404, "not-found", "/input")


def test_pages_tell_how_far_each_is(alice, artifact):
    made = [submit(alice, artifact, ["lossless", PRUNE], seed=i).json()["id"] for i in range(3)]
    alice.post(f"/v1/comparisons/{made[0]}/cancel")
    seen, cursor = [], None
    while True:
        page = alice.get("/v1/comparisons", params={"limit": 2} | ({"cursor": cursor} if cursor else {})).json()
        seen += page["items"]
        if not (cursor := page["next"]):
            break
    mine = [c for c in seen if c["id"] in made]
    assert [c["id"] for c in mine] == made[::-1]
    assert [c["states"] for c in mine] == [{"queued": 2}, {"queued": 2}, {"cancelled": 2}] and mine[0]["names"] == ["lossless", "prune 0.5"]


def test_waiting_ends_with_the_last_job(api, alice, artifact):
    made = submit(alice, artifact, ["lossless", PRUNE]).json()
    start = time.monotonic()
    assert alice.get(f"/v1/comparisons/{made['id']}", params={"wait": 1}).json()["state"] == "running" and time.monotonic() - start > 0.9

    def end():
        with api.client("alice") as c:
            for row in made["rows"]:
                time.sleep(0.5)
                c.post(f"/v1/jobs/{row['job']}/cancel")

    thread = threading.Thread(target=end)
    thread.start()
    r = alice.get(f"/v1/comparisons/{made['id']}", params={"wait": 30})
    thread.join()
    assert r.json()["state"] == "ended" and {row["state"] for row in r.json()["rows"]} == {"cancelled"} and "retry-after" not in r.headers


def test_sent_again_it_gets_the_first_answer(api, alice, artifact, problem):
    key = {"Idempotency-Key": str(uuid.uuid4())}
    first, before = submit(alice, artifact, ["lossless", PRUNE], key), count(api)
    again = submit(alice, artifact, ["lossless", PRUNE], key)
    assert again.json() == first.json() and again.headers["idempotency-replayed"] == "true" and count(api) == before
    problem(submit(alice, artifact, ["lossless"], key), 422, "idempotency-key-reused")


def test_deleting_it_keeps_its_jobs(alice, artifact, problem):
    made = submit(alice, artifact, ["lossless"]).json()
    assert alice.delete(f"/v1/comparisons/{made['id']}").status_code == 204
    problem(alice.get(f"/v1/comparisons/{made['id']}"), 404, "not-found")
    job = alice.get(f"/v1/jobs/{made['rows'][0]['job']}").json()
    assert (job["state"], job["comparison"]) == ("queued", None)


def test_more_than_may_be_open_and_none_is_made(tmp_path, serve_api, model, problem):
    with serve_api(tmp_path, max_open_jobs="2") as api, api.client() as client:
        ident = client.post("/v1/artifacts", params={"name": "m.safetensors"}, content=model()).json()["id"]
        problem(submit(client, ident, ["lossless"] * 3), 429, "too-many-jobs")
        assert count(api) == (0, 0)
        assert submit(client, ident, ["lossless"] * 2).status_code == 202


@pytest.fixture(params=KINDS)
def home(request, tmp_path):
    with own_home(tmp_path, request.param):
        yield


def compared(n: int, queues: tuple[str, ...] = (SMALL,)) -> list[str]:
    """Jobs of one comparison, in turn in these queues."""
    ident = str(uuid.uuid4())
    with session() as s, s.begin():
        made = [jobs.submit(s, owner="o", input_id=None, spec={}, queue=queues[i % len(queues)], cache_key="k", comparison_id=ident).id for i in range(n)]
        spec = {"input": "i", "recipes": [{"name": str(i), "recipe": {}, "output_format": "packed"} for i in range(n)]}
        s.add(Comparison(id=ident, owner="o", spec=spec, jobs=made))
    return made


def claim(*queues: str) -> Job | None:
    with session() as s, s.begin():
        return jobs.claim(s, *(queues or CPU))


def test_its_jobs_are_taken_one_after_another(home):
    made = compared(3)
    with session() as s, s.begin():
        other = jobs.submit(s, owner="o", input_id=None, spec={}, queue=SMALL, cache_key="k").id
    first = claim()
    assert first.id == made[0]
    assert claim().id == other and claim() is None  # what belongs to no comparison waits for nobody
    with session() as s, s.begin():
        assert jobs.handoff(s, first.id, first.fence, {"files": [], "figures": {"ratio": 2.0}})
    second = claim()
    assert second.id == made[1] and claim() is None
    with session() as s, s.begin():
        jobs.cancel(s, second.id)
    assert claim().id == made[2]
    with session() as s:
        assert s.get_one(Job, first.id).figures == {"ratio": 2.0}


def test_who_waits_in_another_queue_is_woken(home):
    made = compared(2, (SMALL, LARGE))
    first = claim(SMALL)
    assert first.id == made[0] and claim(LARGE) is None
    with session() as s, s.begin():
        s.query(Outbox).delete()
        assert jobs.fail(s, first.id, first.fence, {"type": "x"})
    with session() as s:
        assert s.scalars(select(Outbox.topic)).all() == [LARGE]
    assert claim(LARGE).id == made[1]


def test_it_goes_with_the_last_of_its_jobs(home):
    kept, gone = compared(2), compared(2)
    with session() as s, s.begin():
        s.execute(update(Job).where(Job.id.in_([*gone, kept[0]])).values(state="failed", finished_at=now(), expires_at=now() - 1))
    assert retention.expire()[1] == 3
    with session() as s:
        left = s.scalars(select(Comparison)).one()
        assert left.jobs == kept


def test_labels_are_short_and_stand_anything():
    steps = [{"method": "prune", "saliency": "fisher", "sparsity": 0.7, "recover": {"steps": 100}}, {"method": "quantize", "mapping": "gradient", "avg_bits": 3.5}]
    assert label({"steps": steps}) == "prune fisher 0.7 recover 100, quantize gradient 3.5"
    for odd in (None, 3, [], {"steps": 3}, {"steps": [3, {"method": ["x"]}, {"method": "\n"}]}, {"steps": [{"method": "x" * 500}] * 9}):
        assert 0 < len(label(odd)) <= 100 and json.dumps(label(odd)).isprintable()
