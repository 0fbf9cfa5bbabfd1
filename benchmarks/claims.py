"""How long a claim takes when many jobs are queued, and a job as a whole is claimed and handed over, on SQLite and on a PostgreSQL of its own.

    .venv/bin/python -m benchmarks.claims [--rows 100000] [--owners 1 1000] [--databases sqlite postgresql]

Prints a table: database, owners, queued rows, milliseconds of a claim (p50, p99), its share of this process's CPU (p50).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from sqlalchemy import insert, text

from app import jobs
from app.db import engine, session
from app.models import Job
from app.queues import CPU

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the tests' PostgreSQL

from homes import own_home  # noqa: E402
from postgres import server  # noqa: E402

CLAIMS = 300
_PART = 10_000  # rows inserted together


def fill(rows: int, owners: int) -> None:
    with session() as s, s.begin():
        for start in range(0, rows, _PART):
            part = range(start, min(rows, start + _PART))
            s.execute(insert(Job), [{"owner": f"owner-{i % owners:05}", "spec": {}, "queue": CPU[1], "created_at": float(i)} for i in part])
    if engine().dialect.name == "postgresql":  # as its autovacuum does in time
        with engine().connect().execution_options(isolation_level="AUTOCOMMIT") as c:
            c.execute(text("vacuum analyze jobs"))


def measure() -> tuple[list[float], list[float]]:
    """Sorted seconds of the clock and of this process's CPU; every second job ends, the others go on running."""
    clock, cpu = [], []
    for i in range(CLAIMS):
        at, busy = time.perf_counter(), time.process_time()
        with session() as s, s.begin():
            job = jobs.claim(s, *CPU)
        clock.append(time.perf_counter() - at)
        cpu.append(time.process_time() - busy)
        if i % 2:
            with session() as s, s.begin():
                assert jobs.handoff(s, job.id, job.fence, {})
    return sorted(clock), sorted(cpu)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--owners", type=int, nargs="+", default=[1, 1000])
    parser.add_argument("--databases", nargs="+", default=["sqlite", "postgresql"])
    args = parser.parse_args()
    print(f"{'database':12}{'owners':>8}{'rows':>10}{'p50 ms':>9}{'p99 ms':>9}{'cpu ms':>9}")
    try:
        for kind in args.databases:
            for owners in args.owners:
                with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as folder, own_home(Path(folder), kind):
                    fill(args.rows, owners)
                    clock, cpu = measure()
                p50, p99 = clock[CLAIMS // 2] * 1e3, clock[CLAIMS * 99 // 100] * 1e3
                print(f"{kind:12}{owners:8}{args.rows:10}{p50:9.2f}{p99:9.2f}{cpu[CLAIMS // 2] * 1e3:9.2f}", flush=True)
    finally:
        if server.cache_info().currsize:
            server().remove()


if __name__ == "__main__":
    main()
