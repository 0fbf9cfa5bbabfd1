"""A real API process on a free port with a home of its own. Nothing else runs: no broker, no workers, so jobs stay queued."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import s3 as store
import warm
from homes import DEFAULT, own_database, new_storage
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from app.api_keys import create_key
from app.db import make_engine
from app.migrate import upgrade
from app.storage import Storage
from app.storage.bucket import Bucket

MAX_UPLOAD = 1 << 30
IDLE = 3.0  # seconds that a body may pause


@dataclass
class Api:
    """`client` and `other` are two owners; `nobody` has no key."""

    url: str
    port: int
    pid: int
    home: Path
    engine: Engine
    keys: dict[str, str]
    storage: Storage

    def client(self, owner: str | None = "alice", **more) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.keys[owner]}"} if owner else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, **more)

    def session(self) -> Session:
        return Session(self.engine, expire_on_commit=False)

    def stored(self) -> list[str]:
        """Every object in storage, and every file that is not whole yet."""
        if isinstance(self.storage.place, Bucket):
            return sorted(found.key for found in self.storage.list(""))
        root = self.home / "store"
        return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())

    def rss(self) -> int:
        """Bytes of memory that the process has had at most."""
        return int(next(line for line in Path(f"/proc/{self.pid}/status").read_text().splitlines() if line.startswith("VmHWM")).split()[1]) << 10


def start(home: Path, database: str, **settings: str) -> tuple[Api, warm.Started]:
    """`database`: the URL of an empty one."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    engine = make_engine(database)
    upgrade(engine)
    with Session(engine) as s, s.begin():
        keys = {owner: create_key(s, owner) for owner in ("alice", "bob")}
    given = {"home": home, "port": port, "database_url": database, "storage_url": new_storage(home), "broker_url": "redis://127.0.0.1:1/0", **settings}
    mine = {f"MODELPRESS_{name.upper()}": str(value) for name, value in given.items()}
    with (home / "api.log").open("wb") as log:
        process = warm.start("app.main", env=os.environ | mine, stdout=log, stderr=log)
    api = Api(f"http://127.0.0.1:{port}", port, process.pid, home, engine, keys, Storage(given["storage_url"]))
    for _ in range(600):
        try:
            httpx.get(f"{api.url}/healthz")
            return api, process
        except httpx.TransportError:
            if process.poll() is not None:
                break
            time.sleep(0.05)
    process.kill()
    raise RuntimeError((home / "api.log").read_text()[-2000:])


def stop(process: warm.Started) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def api(tmp_path_factory, serve_api):
    with serve_api(tmp_path_factory.mktemp("home"), max_upload_bytes=str(MAX_UPLOAD), upload_idle_timeout=str(IDLE)) as made:
        yield made


@pytest.fixture(scope="session")
def s3():
    """A store that speaks S3; see tests/s3.py."""
    return store.server()


@pytest.fixture(scope="session")
def alice(api):
    with api.client("alice") as c:
        yield c


@pytest.fixture(scope="session")
def bob(api):
    with api.client("bob") as c:
        yield c


@pytest.fixture(scope="session")
def nobody(api):
    with api.client(None) as c:
        yield c


def safetensors(tensors: dict[str, tuple[str, list[int]]] | None = None, fill: bytes = b"\x01") -> bytes:
    """A small valid file; `tensors` maps names to dtype and shape."""
    header, data = {}, b""
    for name, (dtype, shape) in (tensors or {"a.weight": ("F32", [4, 8]), "b.bias": ("F32", [4])}).items():
        count = {"F32": 4, "F16": 2, "U8": 1}[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + count]}
        data += fill * count
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def check_problem(response: httpx.Response, status: int, kind: str, pointer: str | None = None) -> dict:
    """The answer is this problem, in every respect. Returns it without the request's id, which each answer has of its own."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    document = response.json()
    assert (response.status_code, document["status"], document["type"]) == (status, status, kind), document
    assert document["title"] and document["detail"]
    if pointer is not None:
        assert document["pointer"] == pointer, document
    assert document.pop("request_id")
    return document


@pytest.fixture(scope="session")
def model():
    """Makes safetensors files: see `safetensors`."""
    return safetensors


@pytest.fixture(scope="session")
def problem():
    """Checks answers: see `check_problem`."""
    return check_problem


@pytest.fixture(scope="session")
def serve_api():
    """Starts another API process, on a new database (`via`: see `homes.own_database`) or on that of the URL `database`; see `start`."""

    @contextmanager
    def serving(home: Path, kind: str = DEFAULT, via: int | None = None, database: str | None = None, **settings: str):
        with nullcontext(database) if database else own_database(home, kind, via, upgrade) as url:
            made, process = start(home, url, **settings)
            try:
                yield made
            finally:
                stop(process)
                made.engine.dispose()

    return serving
