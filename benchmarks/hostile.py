"""Hostile files, and good ones that look like them, through a whole service: upload, job, child in its jail. A table by family, and every wrong verdict.

    python -m benchmarks.hostile [corpus.tar.xz or folder] [FAMILY ...]

The corpus is a folder with manifest.json (../shared/hostile/README.md). A rejection counts with the reason that the manifest names; what is of a format that no job
takes has the reason unsupported-format. A child may take 512 MiB more than it starts with; seconds of CPU are those of the API and of the child, one file at a time.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from rich.console import Console
from rich.table import Table

CORPUS = Path(__file__).parents[2] / "shared" / "hostile" / "corpus.tar.xz"
MEMORY, SECONDS = 512 << 20, 10.0
DEATHS = ("worker-crashed", "internal-error")


@dataclass(frozen=True)
class Verdict:
    """Of one file: `reason` is the problem's type, empty where it was accepted; `detail` its words; CPU of API and child, seconds."""

    reason: str
    detail: str = ""
    api: float = 0.0
    child: float = 0.0


class Service:
    """`modelpress up` in a home of its own, with children of MEMORY."""

    def __init__(self, home: Path):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{s.getsockname()[1]}"
        environment = os.environ | {"MODELPRESS_HOME": str(home), "MODELPRESS_CHILD_MEMORY": str(MEMORY), "MODELPRESS_GPU": "off", "MODELPRESS_THREADS": "1"}
        self.process = subprocess.Popen([sys.executable, "-m", "app.cli", "up", "--port", self.url.rsplit(":", 1)[1]], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 90
        while not self._ready():
            if time.monotonic() > end or self.process.poll() is not None:
                raise SystemExit(f"the service is not ready; see {home}/logs")
            time.sleep(0.1)
        self.client = httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {(home / 'api-key').read_text().strip()}"}, timeout=60)
        self.workers = self._running("worker.tasks")

    def _ready(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        return False

    def _running(self, mark: str) -> list[psutil.Process]:
        return [p for p in psutil.Process(self.process.pid).children(recursive=True) if any(mark in a for a in p.cmdline())]

    def _cpu(self) -> tuple[float, float]:
        """Seconds of the API, and of all children that zygotes have waited for."""
        api = sum(sum(p.cpu_times()[:2]) for p in self._running("app.main"))
        return api, sum(sum(p.cpu_times()[2:4]) for p in self._running("worker.zygote"))

    def judge(self, path: Path, kind: str) -> Verdict:
        """Upload it as this kind, and run the kind's simplest job on it."""
        before = self._cpu()
        reason, detail = self._asked(path, kind)
        time.sleep(0.05)  # the zygote has waited for its child
        api, child = (after - start for after, start in zip(self._cpu(), before, strict=True))
        return Verdict(reason, detail, api, child)

    def _asked(self, path: Path, kind: str) -> tuple[str, str]:
        r = self.client.post("/v1/artifacts", params={"name": path.name, "kind": kind}, content=path.read_bytes())
        if r.status_code == 201:
            r = self.client.post("/v1/jobs", json={"input": r.json()["id"]} | JOBS[kind])
        if r.status_code >= 400:
            return (r.json()["type"], r.json()["detail"]) if r.status_code < 500 else ("internal-error", r.text)
        job = r.json()
        while job["state"] not in ("succeeded", "failed"):
            job = self.client.get(f"/v1/jobs/{job['id']}", params={"wait": 20}).json()
        return ("", "") if job["state"] == "succeeded" else (job["error"]["type"], job["error"]["detail"])

    def dead(self) -> int:
        """Worker processes that are no longer there."""
        return sum(not p.is_running() for p in self.workers)

    def stop(self) -> None:
        self.client.close()
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()


JOBS: dict[str, dict] = {"model": {"preset": "lossless"}, "dataset": {"recipe": {"steps": [{"method": "reencode"}]}}, "images": {"recipe": {"steps": [{"method": "image", "lossless": True}]}}}
"""The simplest job of each kind of input."""
KINDS = dict.fromkeys((".npy", ".npz"), "dataset") | dict.fromkeys((".png", ".gif"), "images")
"""The kind of a file by its suffix; others are models."""
UNREAD = {"onnx"}
"""Families of formats that no job takes."""


def unpacked(source: Path, folder: Path) -> Path:
    if source.is_dir():
        return source
    with tarfile.open(source) as t:
        t.extractall(folder, filter="data")
    return next(folder.rglob("manifest.json")).parent


def expected(f: dict) -> str:
    """The reason that a file must be refused for, empty where it must be accepted."""
    if f["family"] in UNREAD or f["reason"] == "invalid-onnx":
        return "unsupported-format"
    return f["reason"] or "" if f["expected"] == "rejected" else ""


def main(*arguments: str) -> int:
    source = next((Path(a) for a in arguments if Path(a).exists()), CORPUS)
    families = {a for a in arguments if not Path(a).exists()}
    with tempfile.TemporaryDirectory(prefix="modelpress-hostile-") as folder:
        corpus = unpacked(source, Path(folder, "corpus"))
        manifest = json.loads((corpus / "manifest.json").read_text())
        canaries = Path(manifest["canary_dir"])
        canaries.mkdir(exist_ok=True)
        before = set(canaries.glob(manifest["canary_glob"]))
        files = [f for f in manifest["files"] if not families or f["family"] in families]
        Path(folder, "home").mkdir(mode=0o700)
        service = Service(Path(folder, "home"))
        try:
            verdicts = {f["name"]: service.judge(corpus / f["name"], KINDS.get(Path(f["name"]).suffix, "model")) for f in files}
            dead = service.dead()
        finally:
            service.stop()
        ran = set(canaries.glob(manifest["canary_glob"])) - before
    return told(files, verdicts, dead, len(ran))


def told(files: list[dict], verdicts: dict[str, Verdict], dead: int, ran: int) -> int:
    """Prints; 1 where a `must` has another verdict, something ran, died or took too long."""
    table = Table("family", "must be rejected", "as told, for the reason", "policy", "so, too", "good", "accepted", "most CPU: API", "child", title="hostile files, and good ones that look like them")
    rows: dict[str, list[dict]] = defaultdict(list)
    for f in files:
        rows[f["family"]].append(f)
    wrong = []
    for family, found in sorted(rows.items()):
        counts = []
        for level, verdict in (("must", "rejected"), ("policy", "rejected"), ("must", "accepted")):
            these = [f for f in found if (f["level"], f["expected"]) == (level, verdict)]
            good = [f for f in these if verdicts[f["name"]].reason == expected(f)]
            wrong += [(f, verdicts[f["name"]]) for f in these if f not in good]
            counts += [len(these), len(good)]
        times = [max(getattr(verdicts[f["name"]], part) for f in found) for part in ("api", "child")]
        table.add_row(family, *map(str, counts), *(f"{t:.2f} s" for t in times))
    Console(width=160).print(table)
    for f, v in wrong:
        print(f"{f['family']} {f['level']} {f['name']}: {v.reason or 'accepted'}, expected {expected(f) or 'accepted'} ({f['why']}) {v.detail[:160]}")
    slow = [name for name, v in verdicts.items() if v.api + v.child > SECONDS]
    died = [name for name, v in verdicts.items() if v.reason in DEATHS]
    print(f"{len(files)} files, {ran} canaries, {dead} dead workers, {len(died)} dead children {died}, {len(slow)} over {SECONDS:.0f} s {slow}; children had {MEMORY >> 20} MiB")
    return int(bool(ran or dead or died or slow or [f for f, _ in wrong if f["level"] == "must" and f["family"] not in UNREAD]))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
