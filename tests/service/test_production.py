"""The production layout, as plain processes: the demo runs on it, work is shared out, and no single machine is needed to the end."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from service.production import Production, production
from service.running import QUICK, TERMINAL, model
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db import make_engine
from app.models import Job

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]  # the store that stands in for S3 is slow


@pytest.fixture(scope="module")
def layout(tmp_path_factory) -> Iterator[Production]:
    never = {"MODELPRESS_CLEANING": "3600"}  # moto dates every multipart upload 2010: a sweep would take it for one that was left behind
    with production(tmp_path_factory.mktemp("production"), **QUICK | never) as made:
        yield made


def test_the_demo_runs_on_it(layout):
    variables = layout.environment(layout.folder / "operator", MODELPRESS_API_KEY=layout.key, COLUMNS="160")
    command = [sys.executable, "-m", "demo", "--url", layout.url]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "restored byte for byte" in done.stdout and all(title in done.stdout for title in ("lossless", "int4, group 128", "50 % pruned"))


def test_nobody_keeps_what_is_anothers(layout):
    """The key lies with the sign process alone; models lie in the bucket, rows in PostgreSQL."""
    assert [name for name, home in layout.homes.items() if list(home.rglob("signing.pem"))] == ["sign"]
    for name, home in layout.homes.items():
        kept = [p for p in home.rglob("*") if p.is_file() and (p.suffix in (".safetensors", ".db") or p.stat().st_size > 1 << 20)]
        assert kept == [], name


def test_a_worker_and_an_api_may_go_at_any_time(layout):
    with layout.http() as c:
        source = c.post("/v1/artifacts", params={"name": "model.safetensors"}, content=model(4)).raise_for_status().json()["id"]
        jobs = [c.post("/v1/jobs", json={"input": source, "preset": "w4a16", "seed": i}).raise_for_status().json()["id"] for i in range(12)]
    killed = ("worker-2", "api-1")
    for name in killed:
        time.sleep(1)
        layout.kill(name)
    states, end = {}, time.monotonic() + 120
    while len(states) < len(jobs) and time.monotonic() < end:
        with layout.http() as c:
            for ident in jobs:
                if (job := c.get(f"/v1/jobs/{ident}").raise_for_status().json())["state"] in TERMINAL:
                    states[ident] = job["state"]
        time.sleep(0.3)
    for name in killed:
        layout.start(name)
    layout.ready()
    assert list(states.values()) == ["succeeded"] * len(jobs)
    engine = make_engine(layout.common["MODELPRESS_DATABASE_URL"])
    with Session(engine) as s:
        assert len(set(s.scalars(select(Job.worker).where(Job.id.in_(jobs))))) >= 2
    engine.dispose()
