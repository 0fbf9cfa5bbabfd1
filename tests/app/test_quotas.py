"""What one owner may have: bytes in storage, and jobs that run at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from homes import KINDS, own_home

from app import jobs
from app.db import session
from app.models import Artifact


def test_what_has_no_room_is_refused_before_it_is_read_and_again_at_the_end(tmp_path, serve_api, model, problem):
    data = model({"a.weight": ("F32", [16, 16])})  # about 1.1 kB
    with serve_api(tmp_path, max_stored_bytes="2500") as api, api.client() as alice, api.client("bob") as bob:

        def send(client, fill: bytes, **more):
            return client.post("/v1/artifacts", params={"name": "m.safetensors"}, **({"content": data.replace(b"\x01", fill)} | more))

        first = send(alice, b"\x02").json()["id"]
        assert send(alice, b"\x03").status_code == 201
        again = send(alice, b"\x03", content=iter([data.replace(b"\x01", b"\x03")]))
        assert again.status_code == 201 and alice.get("/v1/usage").json()["stored_bytes"] == 2 * len(data)  # the same bytes count once
        problem(send(alice, b"\x04"), 413, "storage-quota-exceeded")
        problem(send(alice, b"\x04", content=iter([data.replace(b"\x01", b"\x04")])), 413, "storage-quota-exceeded")  # its length is known in the end
        begin = {"Tus-Resumable": "1.0.0", "Upload-Length": "1000", "Upload-Metadata": "filename bS5zYWZldGVuc29ycw=="}
        problem(alice.post("/v1/uploads", headers=begin), 413, "storage-quota-exceeded")
        assert send(bob, b"\x02").status_code == 201
        assert alice.delete(f"/v1/artifacts/{first}").status_code == 204 and send(alice, b"\x04").status_code == 201


@pytest.mark.parametrize("kind", KINDS)
def test_jobs_over_the_number_are_refused_also_a_hundred_at_once(tmp_path, serve_api, model, problem, kind):
    with serve_api(tmp_path, kind, max_open_jobs="7") as api, api.client() as alice:
        body = {"input": alice.post("/v1/artifacts", params={"name": "m.safetensors"}, content=model()).json()["id"], "preset": "lossless"}
        with ThreadPoolExecutor(100) as pool:
            answers = list(pool.map(lambda _: alice.post("/v1/jobs", json=body), range(100)))
        assert sorted(r.status_code for r in answers) == [202] * 7 + [429] * 93 and alice.get("/v1/usage").json()["open_jobs"] == 7
        refused = alice.post("/v1/jobs", json=body)
        problem(refused, 429, "too-many-jobs")
        assert refused.headers["retry-after"] == "60" and "ratelimit" in " ".join(refused.headers)


@pytest.mark.parametrize("kind", KINDS)
def test_an_owner_has_so_many_jobs_running_and_others_go_on(tmp_path, kind):
    with own_home(tmp_path, kind, max_running_jobs="2"), session() as s, s.begin():
        for owner in ("alice", "bob"):
            s.add(Artifact(id=owner, owner=owner, kind="model", format="safetensors", name="m", digest="0" * 64, size=1))
            s.flush()
            for _ in range(4):
                jobs.submit(s, owner=owner, input_id=owner, spec={}, queue="compress.cpu", cache_key="")
        running = [jobs.claim(s, "compress.cpu") for _ in range(5)]
        assert sorted(job.owner for job in running if job) == ["alice", "alice", "bob", "bob"]
        jobs.cancel(s, next(job.id for job in running if job.owner == "bob"))
        assert jobs.claim(s, "compress.cpu").owner == "bob" and jobs.claim(s, "compress.cpu") is None
