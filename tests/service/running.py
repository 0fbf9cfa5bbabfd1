"""A real service: `modelpress up` in a temporary home, spoken to over HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import time
from pathlib import Path

import httpx
import numpy as np
import psutil
import warm
from homes import DEFAULT, new_database, new_storage

TERMINAL = ("succeeded", "failed", "cancelled")


class Service:
    """A running service and its processes."""

    def __init__(self, home: Path, **environment: str):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.home, self.url = home, f"http://127.0.0.1:{self.port}"
        self.environment = {**os.environ, "MODELPRESS_HOME": str(home), **environment}
        if DEFAULT == "postgresql" and "MODELPRESS_DATABASE_URL" not in environment:
            self.environment["MODELPRESS_DATABASE_URL"] = new_database(home)
        storage = environment.get("MODELPRESS_STORAGE_URL") or new_storage(home)
        self.environment = {**os.environ, **self.environment, "MODELPRESS_STORAGE_URL": storage}  # with AWS_*, if that has started a store
        self.start()

    def start(self) -> None:
        self.log = (self.home / "up.log").open("ab")
        self.process = warm.start("app.cli", "up", "--port", str(self.port), env=self.environment, stdout=self.log, stderr=self.log)
        self.ready()
        self.key = (self.home / "api-key").read_text().strip()

    def ready(self, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    return
            time.sleep(0.2)
        logs = "\n".join(f"--- {p.name}\n{p.read_text(errors='replace')[-2000:]}" for p in [self.home / "up.log", *(self.home / "logs").glob("*.log")])
        raise AssertionError(f"the service is not ready after {seconds} s\n{logs}")

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()

    def http(self, **options) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, timeout=60, **options)

    # Processes

    def pid(self, part: str) -> int | None:
        """Of redis, sign, control, webhooks, worker, api, zygote or child; None when it is not there just now."""
        marks = {"redis": "redis-server", "sign": "app.sign", "control": "app.control", "webhooks": "app.webhooks", "worker": "worker.tasks", "api": "app.main"}
        with contextlib.suppress(psutil.Error):
            found = psutil.Process(self.process.pid).children(recursive=True)
            if part in ("zygote", "child"):
                zygotes = [p for p in found if "worker.zygote" in p.cmdline() and "worker.zygote" not in p.parent().cmdline()]
                chosen = zygotes if part == "zygote" else [c for z in zygotes for c in z.children()]
            else:
                chosen = [p for p in found if p.ppid() == self.process.pid and any(marks[part] in a for a in p.cmdline())]
            return chosen[0].pid if chosen else None
        return None

    def kill(self, part: str, sig: int = signal.SIGKILL, seconds: float = 20) -> int:
        """Signal a part as soon as it is there; returns its process id."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if pid := self.pid(part):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, sig)
                    return pid
            time.sleep(0.005)
        raise AssertionError(f"there was no {part} to signal within {seconds} s")

    # Work

    def upload(self, data: bytes, name: str = "model.safetensors") -> str:
        with self.http() as c:
            r = c.post("/v1/artifacts", params={"name": name}, content=data)
        assert r.status_code == 201, r.text
        return r.json()["id"]

    def submit(self, artifact: str, **spec) -> dict:
        with self.http() as c:
            r = c.post("/v1/jobs", json={"input": artifact} | (spec or {"preset": "lossless"}))
        assert r.status_code == 202, r.text
        return r.json()

    def job(self, job_id: str, **params) -> dict:
        """Asked again while the API is being restarted."""
        for _ in range(200):
            with contextlib.suppress(httpx.HTTPError), self.http() as c:
                r = c.get(f"/v1/jobs/{job_id}", params=params)
                if r.status_code == 200:
                    return r.json()
            time.sleep(0.1)
        raise AssertionError("the API does not come back")

    def finish(self, job_id: str, seconds: float = 90) -> dict:
        end = time.monotonic() + seconds
        while (job := self.job(job_id, wait=2))["state"] not in TERMINAL:
            assert time.monotonic() < end, job
        return job

    def until(self, job_id: str, state: str, seconds: float = 30) -> dict:
        end = time.monotonic() + seconds
        while (job := self.job(job_id))["state"] != state:
            assert time.monotonic() < end and job["state"] not in TERMINAL, job
            time.sleep(0.03)
        return job


def safetensors(tensors: dict[str, np.ndarray], metadata: dict | None = None) -> bytes:
    """A file of float32 tensors."""
    header, at = ({"__metadata__": metadata} if metadata else {}), 0
    for name, t in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(t.shape), "data_offsets": [at, at + 4 * t.size]}
        at += 4 * t.size
    text = json.dumps(header).encode()
    return b"".join([struct.pack("<Q", len(text)), text, *(t.astype("<f4").tobytes() for t in tensors.values())])


def model(megabytes: float, seed: int = 0) -> bytes:
    """Linear layers of random weights, 1 MB each."""
    rng = np.random.default_rng(seed)
    count = max(1, round(megabytes))
    rows = max(1, round(megabytes * 1024 / 4 / count))
    return safetensors({f"layers.{i}.weight": 0.02 * rng.standard_normal((rows, 1024), dtype="f4") for i in range(count)})


QUICK = {"LEASE": "3", "HEARTBEAT": "0.5", "SWEEP": "0.5", "REWAKE": "2", "POLL": "0.1", "CLEANING": "3"}
QUICK |= {"WEBHOOK_ALLOW_PRIVATE": "true", "WEBHOOK_TIMEOUT": "2", "WEBHOOK_BACKOFF": "0.1"}
QUICK = {f"MODELPRESS_{name}": value for name, value in QUICK.items()}
"""Shorter times, so that what a lease or a sweep mends is mended within a test; webhooks may go to this machine."""
