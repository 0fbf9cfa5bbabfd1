"""Which queue a job goes to, which ones a worker takes, and how the parts are started that listen there."""

from __future__ import annotations

import pytest
from homes import own_home
from sqlalchemy import select

from app import gpus, jobs, parts, queues, sweep, workers
from app.config import settings
from app.db import session
from app.embedded import workers as started
from app.models import Job, Outbox, Worker
from app.recipe import parse_recipe

PRUNE, SEARCH, ROUND, LOSSLESS = (
    parse_recipe({"steps": [step]})
    for step in ({"method": "prune"}, {"method": "quantize", "num_bits": 4, "scale_search": "mse"}, {"method": "quantize", "num_bits": 8}, {"method": "lossless"})
)


@pytest.fixture
def home(tmp_path):
    with own_home(tmp_path):
        yield tmp_path


@pytest.mark.parametrize(
    "device, recipe, gpu, queue",
    [
        ("cpu", SEARCH, True, "compress.cpu"), ("cuda", ROUND, True, "compress.gpu"), ("cuda", LOSSLESS, True, "compress.cpu"), ("auto", SEARCH, True, "compress.gpu"), ("auto", PRUNE, True, "compress.gpu"),
        ("auto", SEARCH, False, "compress.cpu"), ("auto", ROUND, True, "compress.cpu"), ("auto", LOSSLESS, True, "compress.cpu"),
    ],
)  # fmt: skip
def test_where_a_job_goes(home, device, recipe, gpu, queue):
    limit = settings().large_memory
    assert queues.choose(device, recipe, limit, gpu) == queue and queues.choose(device, recipe, limit + 1, gpu) == f"{queue}.large"


def test_a_worker_takes_the_most_specialised_first(home, monkeypatch):
    assert queues.served() == ("compress.cpu.large", "compress.cpu")
    monkeypatch.setattr(settings(), "queues", "compress.cpu, compress.gpu,compress.gpu.large")
    assert queues.served() == ("compress.gpu.large", "compress.gpu", "compress.cpu")


@pytest.mark.parametrize("named", ["", "compress", "compress.cpu,compress.tpu"])
def test_a_queue_that_is_none_is_named(home, monkeypatch, named):
    monkeypatch.setattr(settings(), "queues", named)
    with pytest.raises(SystemExit, match="compress.cpu.large"):
        queues.served()


def test_each_part_listens_to_its_queue_and_has_a_name_of_its_own(home):
    assert parts.command("api")[-1] == "app.main"
    for part in ("sign", "control", "webhooks"):
        line = parts.command(part)
        assert line[line.index("-Q") + 1] == part and (part == "control") == ("-B" in line)
    line = parts.command("worker", name="w")
    assert line[line.index("-Q") + 1] == "compress.cpu.large,compress.cpu" and line[line.index("-n") + 1] == "w@%h"


def test_workers_share_the_cores_and_each_gpu_has_one(home, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 9)
    monkeypatch.setattr("app.embedded.gpus", lambda: ["0", "3"])
    monkeypatch.setattr(settings(), "workers", 2)
    made = started()
    assert [c.name for c in made] == ["worker-1", "worker-2", "gpu-0", "gpu-1"] and {c.own["MODELPRESS_THREADS"] for c in made} == {"2"}
    assert [c.own.get("CUDA_VISIBLE_DEVICES") for c in made] == [None, None, "0", "3"]
    assert made[2].own["MODELPRESS_QUEUES"] == "compress.gpu.large,compress.gpu" and "compress.gpu.large,compress.gpu" in made[3].command


@pytest.mark.parametrize("listed, expected", [(None, ["0", "1"]), ("1", ["1"]), ("GPU-abc, GPU-def", ["GPU-abc", "GPU-def"]), ("", [])])
def test_gpus_are_those_that_the_operator_lists(home, monkeypatch, tmp_path, listed, expected):
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.setattr(gpus, "Path", lambda _: tmp_path)
    monkeypatch.setattr(gpus, "version", lambda _: "2.13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if listed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert gpus.gpus() == expected
    monkeypatch.setattr(gpus, "version", lambda _: "2.13.0+cpu")
    assert gpus.gpus() == []


def test_auto_jobs_come_home_when_the_last_gpu_is_gone(home):
    with session() as s, s.begin():
        for device, queue in (("auto", "compress.gpu.large"), ("cuda", "compress.gpu"), ("auto", "compress.gpu"), ("auto", "compress.cpu")):
            jobs.submit(s, owner="o", input_id=None, spec={"device": device}, queue=queue, cache_key="k")
        workers.register(s, Worker(id="w", queues=["compress.gpu"], device="cuda X", memory=1, threads=1, jail={}, version="1"))
    with session() as s, s.begin():
        assert sweep.rehome(s) == 0
        workers.leave(s, "w")
        assert sweep.rehome(s) == 2 and sweep.rehome(s) == 0
    with session() as s:
        assert sorted(s.scalars(select(Job.queue))) == ["compress.cpu", "compress.cpu", "compress.cpu.large", "compress.gpu"]
        assert {"compress.cpu", "compress.cpu.large"} <= set(s.scalars(select(Outbox.topic)))


def test_a_claim_says_who_and_what(home):
    worker = Worker(id="w", device="cuda NVIDIA X")
    with session() as s, s.begin():
        for queue in ("compress.gpu", "compress.cpu"):
            jobs.submit(s, owner="o", input_id=None, spec={}, queue=queue, cache_key="k")
        first, second = (jobs.claim(s, *queues.ALL, worker=worker) for _ in range(2))
    assert (first.worker, first.device, second.worker, second.device) == ("w", "cuda NVIDIA X", "w", "cpu")
