"""How many small jobs a second, and what a crowd of waiters and uploads costs.

    .venv/bin/python -m benchmarks.load [--jobs 1000] [--workers 1,2,4]

First, for each number of worker processes, a service of its own takes all jobs at once (jobs/s; p50 and p99 from POST to signed are then mostly the
queue's), and afterwards one at a time (what a lone user waits). Then 200 requests wait for jobs while 20 uploads of 200 MB come in: the API's memory, how long a plain GET
takes meanwhile, and how late the waiters learn of a job's end. Client and service share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import httpx
import numpy as np
from safetensors.numpy import save

from benchmarks.http_memory import Peaks, file
from demo.__main__ import service

ALONE = 50  # jobs sent one at a time
WAITERS, UPLOADS, UPLOAD_BYTES = 200, 20, 200_000_000


def client(url: str, home: Path) -> httpx.AsyncClient:
    key = (home / "api-key").read_text().strip()
    limits = httpx.Limits(max_connections=WAITERS + UPLOADS + 10, max_keepalive_connections=WAITERS)
    return httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=600, limits=limits)


def small_model() -> bytes:
    """64 kB of float32."""
    return save({"w.weight": 0.02 * np.random.default_rng(0).standard_normal((128, 128), dtype="f4")})


def quantiles(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    return f"p50 {1e3 * statistics.median(ordered):.0f} ms, p99 {1e3 * ordered[int(0.99 * (len(ordered) - 1))]:.0f} ms"


def moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


async def upload(c: httpx.AsyncClient, data: bytes) -> str:
    r = await c.post("/v1/artifacts", params={"name": "small.safetensors"}, content=data)
    return r.raise_for_status().json()["id"]


async def submit(c: httpx.AsyncClient, source: str, seed: int) -> str:
    """Each with a seed of its own, so that none is answered from the cache."""
    r = await c.post("/v1/jobs", json={"input": source, "preset": "lossless", "seed": seed})
    return r.raise_for_status().json()["id"]


async def ended(c: httpx.AsyncClient, ident: str) -> dict:
    while (job := (await c.get(f"/v1/jobs/{ident}", params={"wait": 30})).raise_for_status().json())["state"] not in ("succeeded", "failed", "cancelled"):
        pass
    return job


async def throughput(url: str, home: Path, count: int) -> str:
    async with client(url, home) as c:
        source = await upload(c, small_model())
        await ended(c, await submit(c, source, 1 << 40))  # the zygote is up
        gate = asyncio.Semaphore(16)

        async def sent(seed: int) -> str:
            async with gate:
                return await submit(c, source, seed)

        start = time.monotonic()
        idents = await asyncio.gather(*(sent(i) for i in range(count)))
        posted = time.monotonic() - start
        jobs = [await ended(c, ident) for ident in idents]
        took = max(moment(j["finished_at"]) for j in jobs) - min(moment(j["created_at"]) for j in jobs)
        lost = sum(j["state"] != "succeeded" for j in jobs)
        alone = [await ended(c, await submit(c, source, count + i)) for i in range(ALONE)]
    crowd, single = ([moment(j["finished_at"]) - moment(j["created_at"]) for j in part] for part in (jobs, alone))
    return f"{count / took:6.1f} jobs/s ({quantiles(crowd)}; {lost} lost; POST {count / posted:.0f}/s) | one at a time {quantiles(single)}"


async def crowd(url: str, home: Path) -> tuple[str, str, str]:
    async with client(url, home) as c:
        source = await upload(c, small_model())
        done, lag, looks = asyncio.Event(), [], []

        async def waiter(seed: int) -> None:
            job = await ended(c, await submit(c, source, seed))
            lag.append(time.time() - moment(job["finished_at"]))

        async def sent() -> float:
            async def pieces():
                for piece in file(UPLOAD_BYTES):
                    yield piece

            start = time.monotonic()
            (await c.post("/v1/artifacts", params={"name": "large.safetensors"}, content=pieces())).raise_for_status()
            return time.monotonic() - start

        async def look() -> None:
            while not done.is_set():
                start = time.monotonic()
                (await c.get("/v1/artifacts", params={"limit": 1})).raise_for_status()
                looks.append(time.monotonic() - start)
                await asyncio.sleep(0.05)

        looking = asyncio.create_task(look())
        start = time.monotonic()
        await asyncio.gather(*(waiter(i) for i in range(WAITERS)), *(sent() for _ in range(UPLOADS)))
        took = time.monotonic() - start
        done.set()
        await looking
    rate = UPLOADS * UPLOAD_BYTES / took / 1e6
    return f"{took:.1f} s, {rate:.0f} MB/s in all", quantiles(looks), quantiles(lag)


@contextmanager
def fresh(*options: str) -> Iterator[tuple[str, Path]]:
    """A service in a home of its own: its address and that home."""
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as d, service(Path(d), *options) as url:
        yield url, Path(d)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--workers", default="1,2,4")
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores; client and service on one machine")
    for n in args.workers.split(","):
        with fresh("--workers", n) as (url, home):
            print(f"{n} workers: {asyncio.run(throughput(url, home, args.jobs))}", flush=True)
    with fresh() as (url, home), Peaks() as sampled:
        took, looks, lag = asyncio.run(crowd(url, home))
        print(f"{WAITERS} waiters and {UPLOADS} uploads of {UPLOAD_BYTES // 10**6} MB: {took}")
        print(f"  a GET meanwhile: {looks}; a waiter learns of its job's end after {lag}")
        print("  peak memory: " + ", ".join(f"{name} {peak / 1e6:.0f} MB" for name, peak in sorted(sampled.peaks.items())))


if __name__ == "__main__":
    main()
