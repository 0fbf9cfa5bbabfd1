"""An API process for a benchmark, in a home and on a port of its own. Nothing else runs: no broker, no workers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[1]
_PREPARE = "from app.migrate import upgrade; from app.api_keys import ensure_first_key; upgrade(); ensure_first_key()"


@dataclass(frozen=True)
class Server:
    """`environment`: of its process, by which commands reach the same home."""

    port: int
    home: Path
    environment: dict[str, str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def key(self) -> str:
        """The home's first, where it was prepared."""
        return (self.home / "api-key").read_text().strip()


@contextmanager
def api(home: Path, prepare: bool = True, **settings: str) -> Iterator[Server]:
    """Args:
    prepare: make the tables and the first key, which an existing database has already.
    settings: environment variables.
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    home.mkdir(exist_ok=True)
    environment = os.environ | {"MODELPRESS_HOME": str(home), "MODELPRESS_PORT": str(port), "MODELPRESS_BROKER_URL": "redis://127.0.0.1:1/0"} | settings
    if prepare:
        subprocess.run([sys.executable, "-c", _PREPARE], env=environment, cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    process = subprocess.Popen([sys.executable, "-m", "app.main"], env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server = Server(port, home, environment)
    try:
        for _ in range(300):
            try:
                httpx.get(f"{server.url}/healthz")
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield server
    finally:
        process.kill()
        process.wait()
