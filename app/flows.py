"""What a client does, as flows: generators that yield `Call`s and are sent the responses (httpx does its authentication that way).

A flow may also yield a `Pause`, or a `Together` of other flows, and is sent what those return. Uploads are in `app.sending`.

Nothing here opens a connection, so the blocking and the async client share every line of it.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import httpx

from app.errors import ChecksumMismatch, JobFailure, ModelpressError, NotFound, Unavailable, error_of
from app.signing import parse_public
from app.statement import SIDECARS
from app.verify import SIDE_FOLDER, safe_path

CHUNK = 1 << 20
POLL = 1  # seconds that a `wait` lets the service hold the request, and so how old a progress bar may be
Progress = Callable[[int], None]  # told the bytes moved since the last call


def silent(_: Any) -> None: ...


@dataclass
class Call:
    """One request. `source` is a file to send from `start` on, `target` an open file to receive the body; else the body is read into the response."""

    method: str
    path: str
    params: dict | None = None
    json: Any = None
    headers: dict | None = None
    source: Path | None = None
    start: int = 0
    target: BinaryIO | None = None
    progress: Progress = silent

    def request(self) -> dict:
        """What httpx's `stream` takes, but for the content."""
        length = {"Content-Length": str(self.source.stat().st_size - self.start), "Content-Type": "application/octet-stream"} if self.source else {}
        return {"method": self.method, "url": self.path, "params": self.params, "json": self.json, "headers": length | (self.headers or {})}

    def blocks(self) -> Iterator[bytes]:
        with self.source.open("rb") as f:
            f.seek(self.start)
            while block := f.read(CHUNK):
                yield block
                self.progress(len(block))

    def receive(self, block: bytes) -> None:
        self.target.write(block)
        self.progress(len(block))


@dataclass
class Pause:
    seconds: float


@dataclass
class Together:
    """Flows of which `at_once` run at a time; what they return comes back as a list. The first that fails ends the others."""

    flows: list[Flow]
    at_once: int


Flow = Generator[Call | Pause | Together, Any, Any]


def submit(spec: dict) -> Flow:
    """When no answer comes the request is sent once more; its key sees to it that there is one job all the same."""
    return _once("/v1/jobs", spec)


def compare(spec: dict) -> Flow:
    """See `submit`."""
    return _once("/v1/comparisons", spec)


def _once(path: str, spec: dict) -> Flow:
    call = Call("POST", path, json=spec, headers={"Idempotency-Key": str(uuid.uuid4())})
    try:
        response = yield call
    except Unavailable:
        response = yield call
    return response.json()


def wait(job_id: str, on_progress: Callable[[dict], None]) -> Flow:
    while True:
        job = (yield Call("GET", f"/v1/jobs/{job_id}", {"wait": POLL})).json()
        on_progress(job)
        if job["state"] == "succeeded":
            return job
        if job["state"] in ("failed", "cancelled"):
            raise error_of(job["error"]) if job.get("error") else JobFailure(f"the job was {job['state']}")


def wait_comparison(ident: str, on_progress: Callable[[dict], None]) -> Flow:
    """The table once every job has ended, however it has."""
    while True:
        found = (yield Call("GET", f"/v1/comparisons/{ident}", {"wait": POLL})).json()
        on_progress(found)
        if found["state"] == "ended":
            return found


@contextmanager
def _whole(path: Path, sha256: str | None):
    """A file to write that stands under `path` only once it is complete and has the digest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(descriptor, "w+b") as f:
            os.fchmod(f.fileno(), 0o644)
            yield f
            f.seek(0)
            if sha256 and (got := hashlib.file_digest(f, "sha256").hexdigest()) != sha256:
                raise ChecksumMismatch(f"{path.name} arrived with SHA-256 {got}, and {sha256} was announced")
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def download(artifact_id: str, folder: Path, progress: Progress) -> Flow:
    meta = (yield Call("GET", f"/v1/artifacts/{artifact_id}")).json()
    base, paths = f"/v1/artifacts/{artifact_id}", {f["path"] for f in meta["files"]}
    if unsafe := [p for p in paths if not safe_path(p)]:
        raise ModelpressError(f"the service names a path that leaves the folder: {unsafe[0][:200]!r}")
    for file in meta["files"]:
        with _whole(folder / file["path"], file["sha256"].removeprefix("sha256:")) as target:
            yield Call("GET", f"{base}/files/{quote(file['path'])}", target=target, progress=progress)
    side = folder / SIDE_FOLDER if paths & set(SIDECARS) else folder
    where = {"model.sig": f"{base}/signature", "provenance.json": f"{base}/provenance", "report.json": f"{base}/report"}
    for name in SIDECARS:
        if name in paths and name not in where:
            continue  # the result's own file of that name hides the sums
        try:
            with _whole(side / name, None) as target:
                yield Call("GET", where.get(name, f"{base}/files/{name}"), headers={"Accept": "application/json, */*;q=0.5"}, target=target)
        except NotFound:
            pass  # an upload is not signed
    return meta


def answer(call: Call) -> Flow:
    return (yield call).json()


def pages(path: str) -> Flow:
    items, params = [], {}
    while True:
        page = (yield Call("GET", path, params)).json()
        items += page["items"]
        if not page.get("next"):
            return items
        params = {"cursor": page["next"]}


def rates() -> Flow:
    response = yield Call("GET", "/v1/estimates/rates")
    return response.json()["bytes_per_second"]


def public_keys() -> Flow:
    response = yield Call("GET", "/v1/keys")
    return [parse_public(k["pem"].encode()) for k in response.json()["keys"] if not k.get("revoked_at")]


def key_document() -> Flow:
    return (yield Call("GET", "/v1/keys")).json()
