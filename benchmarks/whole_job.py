"""A job as a user sees it: upload, POST of the job until it is signed, and download, over HTTP, of a small and of a large model.

    .venv/bin/python -m benchmarks.whole_job [--bytes 256000000] [--runs 15] [--large-runs 3]

The small model has 1 MB of bf16; medians over the runs, each with a seed of its own, so that none is answered from the cache. `signed` begins with the POST of the job and ends when its state can be read by
somebody who waits for it; the stages are those that the job tells. The large model is held against the sum of what cannot be left out: an upload to a server that only hashes, the work in a process of its own, and the download.
Client and service share the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import statistics
import tempfile
import time
from datetime import datetime
from multiprocessing import Process, Queue
from pathlib import Path

import httpx

from app.job_spec import PRESETS as RECIPES
from benchmarks.checkpoints import Widths, llama
from benchmarks.row import measured
from benchmarks.upload import null_server, send
from demo.__main__ import service
from worker import pipeline

SMALL = Widths(128, 320, 1000)
PRESETS = ("lossless", "w8a16", "w4a16", "prune-50")
PIECE = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bytes", type=int, default=256_000_000)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--large-runs", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as d:
        root = Path(d)
        (home := root / "home").mkdir()
        small = llama(root / "small", 1_000_000, widths=SMALL) / "model.safetensors"
        with service(home) as url:
            headers = {"Authorization": f"Bearer {(home / 'api-key').read_text().strip()}"}
            with httpx.Client(base_url=url, headers=headers, timeout=600) as c:
                print(f"{os.cpu_count()} cores; {small.stat().st_size / 1e6:.2f} MB, medians of {args.runs}, milliseconds")
                print(f"{'':12}{'upload':>9}{'signed':>9}{'download':>10}{'p90':>7}  stages")
                for preset in PRESETS:
                    jobs(c, home, small, preset, 2, 1 << 40)  # what is imported and connected once
                    tell(preset, jobs(c, home, small, preset, args.runs, 0), 1e3)
                if args.bytes and args.large_runs:
                    large = llama(root / "large", args.bytes) / "model.safetensors"
                    null = uploaded_to_null(large, args.large_runs)
                    print(f"\n{large.stat().st_size / 1e6:.0f} MB, medians of {args.large_runs}, seconds; an upload to a server that only hashes takes {null:.2f}")
                    for preset in PRESETS:
                        found = jobs(c, home, large, preset, args.large_runs, 0)
                        tell(preset, found, 1)
                        work = statistics.median(alone(large, root, preset) for _ in range(args.large_runs))
                        whole, least = sum(middle(found, k) for k in ("upload", "signed", "download")), null + work + middle(found, "download")
                        print(f"{'':12}whole {whole:.2f} s; null upload + work alone ({work:.2f} s) + download {least:.2f} s: {whole / least:.2f} times as long", flush=True)


def jobs(c: httpx.Client, home: Path, path: Path, preset: str, runs: int, seed: int) -> list[dict]:
    """Seconds of each run: `upload`, `signed`, `download`, and `stages`."""
    found = []
    for i in range(runs):
        start = time.perf_counter()
        with path.open("rb") as f:
            artifact = c.post("/v1/artifacts", params={"name": path.name}, content=iter(lambda: f.read(PIECE), b"")).raise_for_status().json()["id"]
        uploaded = time.perf_counter()
        job = c.post("/v1/jobs", json={"input": artifact, "preset": preset, "seed": seed + i, "output": {"format": "packed"}}).raise_for_status().json()
        while job["state"] not in ("succeeded", "failed", "cancelled"):
            job = c.get(f"/v1/jobs/{job['id']}", params={"wait": 60}).raise_for_status().json()
        signed = time.perf_counter()
        if job["state"] != "succeeded":
            raise SystemExit(f"{preset}: {job}")
        for file in c.get(f"/v1/artifacts/{job['output']}").raise_for_status().json()["files"]:
            with c.stream("GET", f"/v1/artifacts/{job['output']}/files/{file['path']}") as answer:
                for _ in answer.raise_for_status().iter_raw(PIECE):
                    pass
        found.append({"upload": uploaded - start, "signed": signed - uploaded, "download": time.perf_counter() - signed, "stages": _stages(home, job)})
        c.delete(f"/v1/artifacts/{job['output']}")
    return found


def _stages(home: Path, job: dict) -> dict[str, float]:
    """Seconds from the POST to the claim, of the stages that the service has measured, and all of it by its own clock."""
    created, started, finished = (datetime.fromisoformat(job[name]).timestamp() for name in ("created_at", "started_at", "finished_at"))
    with sqlite3.connect(f"file:{home / 'modelpress.db'}?mode=ro", uri=True) as db:
        (told,) = db.execute("select timings from jobs where id = ?", [job["id"]]).fetchone()
    return {"queued": started - created} | json.loads(told) | {"in all": finished - created}


def middle(found: list[dict], name: str) -> float:
    return statistics.median(one[name] for one in found)


def tell(preset: str, found: list[dict], unit: float) -> None:
    digits = 0 if unit > 1 else 2
    stages = ", ".join(f"{name} {unit * statistics.median(one['stages'][name] for one in found if name in one['stages']):.{digits}f}" for name in found[0]["stages"])
    worst = sorted(one["signed"] for one in found)[int(0.9 * (len(found) - 1))]
    figures = (unit * middle(found, name) for name in ("upload", "signed", "download"))
    print(f"{preset:12}{next(figures):9.{digits}f}{next(figures):9.{digits}f}{next(figures):10.{digits}f}{unit * worst:7.{digits}f}  {stages}", flush=True)


def alone(path: Path, root: Path, preset: str) -> float:
    """Seconds of the work itself, from file to file, imports not counted."""
    with tempfile.TemporaryDirectory(dir=root) as out:
        (Path(out) / "out").mkdir()
        return measured("benchmarks.whole_job:compress", root, inp=path.parent, out=Path(out) / "out", preset=preset)["seconds"]


def compress(inp: str, out: str, preset: str) -> None:
    spec = {"recipe": RECIPES[preset], "output": {"format": "packed"}, "sanitize": "report", "seed": 0, "gates": {}}
    pipeline.run(Path(inp), Path(out), spec, lambda event: None)


def uploaded_to_null(path: Path, runs: int) -> float:
    ports: Queue = Queue()
    server = Process(target=null_server, args=(ports,), daemon=True)
    server.start()
    try:
        port = ports.get()
        return statistics.median(send(port, "POST / HTTP/1.1\r\n", path) for _ in range(runs))
    finally:
        server.kill()


if __name__ == "__main__":
    main()
