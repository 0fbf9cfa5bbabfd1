"""The layout that an operator runs, as plain processes: PostgreSQL, Redis, a bucket, two APIs behind a balancer, three workers, and the parts beside
them. Each process has a home of its own, as on a machine of its own, so that whatever works here needs none of another's disk.
"""

from __future__ import annotations

import itertools
import os
import secrets
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import s3
from homes import own_database

from app.embedded import redis_server

PARTS = ("sign", "control", "webhooks", "worker-1", "worker-2", "worker-3", "api-1", "api-2")


class Balancer(socketserver.ThreadingTCPServer):
    """Hands connections to the APIs in turn, and to the next one where one does not answer."""

    allow_reuse_address = daemon_threads = True

    def __init__(self, ports: list[int]):
        self.turns, self.count = itertools.cycle(ports), len(ports)
        super().__init__(("127.0.0.1", 0), _Passing)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def handle_error(self, *_) -> None:
        """A connection that breaks is its two ends' affair."""


class _Passing(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        for _ in range(self.server.count):
            try:
                other = socket.create_connection(("127.0.0.1", next(self.server.turns)))
                break
            except ConnectionRefusedError:
                continue
        else:
            return
        with other:
            back = threading.Thread(target=_pump, args=[other, self.request], daemon=True)
            back.start()
            _pump(self.request, other)
            back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


class Production:
    """The running layout. `key` is an API key, `homes` where each part keeps what is its own."""

    def __init__(self, folder: Path, common: dict[str, str]):
        self.folder, self.common = folder, common
        self.ports = {name: s3.free_port() for name in PARTS if name.startswith("api")}
        self.homes = {name: folder / name for name in PARTS}
        self.processes: dict[str, subprocess.Popen] = {}
        self.balancer = Balancer(list(self.ports.values()))
        self.url = self.balancer.url
        self.command("db", "upgrade")
        self.key = self.command("db", "create-key", "operator").strip()
        for name in PARTS:
            self.start(name)
        self.ready()

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        home.mkdir(mode=0o700, exist_ok=True)
        return {**os.environ, **self.common, "MODELPRESS_HOME": str(home), **more}

    def command(self, *arguments: str) -> str:
        """`modelpress ...` on the operator's machine; what it prints."""
        command = [sys.executable, "-m", "app.cli", *arguments]
        done = subprocess.run(command, env=self.environment(self.folder / "operator"), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, name: str) -> None:
        more = {"MODELPRESS_PORT": str(self.ports[name])} if name in self.ports else {}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "app.cli", name.split("-")[0]], env=self.environment(self.homes[name], **more), stdout=log, stderr=log, start_new_session=True
            )  # fmt: skip

    def ready(self, seconds: float = 60) -> None:
        """Both APIs say so."""
        end = time.monotonic() + seconds
        for port in self.ports.values():
            while True:
                try:
                    answer = httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5)
                    if answer.status_code == 200:
                        break
                    said = answer.text
                except httpx.HTTPError as e:
                    said = repr(e)
                logs = "\n".join(f"--- {name}\n{(self.folder / f'{name}.log').read_text(errors='replace')[-1500:]}" for name in PARTS)
                assert time.monotonic() < end, f"{said}\n{logs}"
                time.sleep(0.1)

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, timeout=60)

    def kill(self, name: str) -> None:
        """As when its machine loses power."""
        os.killpg(self.processes[name].pid, signal.SIGKILL)
        self.processes[name].wait()

    def stop(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.balancer.shutdown()
        self.balancer.server_close()


@contextmanager
def redis(folder: Path) -> Iterator[str]:
    """A Redis with a password on a port of its own; its URL."""
    port, password = s3.free_port(), secrets.token_hex(8)
    command = [redis_server(), "--port", str(port), "--bind", "127.0.0.1", "--requirepass", password, "--save", "", "--appendonly", "no", "--dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"redis://:{password}@127.0.0.1:{port}/0"
    finally:
        process.kill()
        process.wait()


@contextmanager
def production(folder: Path, **settings: str) -> Iterator[Production]:
    """Everything, on an empty database and an empty bucket. `settings` are MODELPRESS_* variables of all parts."""
    store = s3.server()
    with redis(folder) as broker, own_database(folder, "postgresql") as database:
        places = {"MODELPRESS_DATABASE_URL": database, "MODELPRESS_BROKER_URL": broker, "MODELPRESS_STORAGE_URL": f"s3://{store.bucket()}/models"}
        made = Production(folder, {**store.environment, **places, **settings})
        try:
            yield made
        finally:
            made.stop()
