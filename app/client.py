"""A client for the service, sync and async.

    with Client("http://127.0.0.1:8720", key) as c:
        job = c.submit(c.upload(Path("model.safetensors"))["id"], preset="lossless")
        c.download(c.wait(job["id"])["output"], Path("out"))

Every operation is a flow of `app.flows`; `Client` and `AsyncClient` differ only in how they carry a call out. What the service refuses is
raised as the same `ModelpressError` that it raised there.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import httpx
from httpx_sse import connect_sse

from app import customer_keys, encrypting, flows, sending
from app.config import settings
from app.errors import ModelpressError, Unavailable, error_of
from app.flows import CHUNK, Call, Flow, Pause, Progress, Together, silent
from app.signing import PublicKey

SILENCE = httpx.Timeout(45, connect=10)  # seconds; a stream of events has a comment every 15
RECONNECTS = 10


class _Operations:
    """What a client can do. In `AsyncClient` each of these is awaited."""

    def upload(self, path: Path, name: str | None = None, kind: str | None = None, progress: Progress = silent, recipient: str | None = None) -> dict:
        """Send a file, or a folder file by file; returns the artifact. Its bytes are proved to be the file's by their SHA-256.

        A large file goes on where it was when the connection, the service or this process breaks off; encrypted to a `recipient` of age (`key_document()["age"]`) it starts anew.
        """
        if recipient is not None:
            return self._run(encrypting.upload(path, name or path.resolve().name, kind, recipient, progress, str(self.http.base_url)))
        flow = sending.upload_folder if path.is_dir() else sending.upload_file
        return self._run(flow(path, name or path.resolve().name, kind, progress, str(self.http.base_url)))

    def submit(self, input_id: str, **spec) -> dict:
        """Queue a job; `spec` is the body of `POST /v1/jobs` without its input (`preset="w4a16"`, or `recipe={"steps": [...]}`)."""
        return self._run(flows.submit({"input": input_id} | spec))

    def wait(self, job_id: str, on_progress: Callable[[dict], None] = silent) -> dict:
        """The job once it has succeeded. Raises what it failed with; `JobFailure` when it was cancelled."""
        return self._run(flows.wait(job_id, on_progress))

    def compare(self, input_id: str, recipes: list, **spec) -> dict:
        """Queue a job for every recipe; `spec` is the rest of the body of `POST /v1/comparisons`."""
        return self._run(flows.compare({"input": input_id, "recipes": recipes} | spec))

    def comparison(self, comparison_id: str) -> dict:
        """Its table, as far as it is known."""
        return self._run(flows.answer(Call("GET", f"/v1/comparisons/{comparison_id}")))

    def wait_comparison(self, comparison_id: str, on_progress: Callable[[dict], None] = silent) -> dict:
        """The table once every job has ended. What a job failed with stands in its row."""
        return self._run(flows.wait_comparison(comparison_id, on_progress))

    def download(self, artifact_id: str, folder: Path, progress: Progress = silent) -> dict:
        """Fetch an artifact with its signatures into `folder`; returns its metadata. A file stands under its name only when its digest is right."""
        return self._run(flows.download(artifact_id, folder, progress))

    def artifact(self, artifact_id: str) -> dict:
        return self._run(flows.answer(Call("GET", f"/v1/artifacts/{artifact_id}")))

    def report(self, artifact_id: str) -> dict:
        return self._run(flows.answer(Call("GET", f"/v1/artifacts/{artifact_id}/report", headers={"Accept": "application/json"})))

    def job(self, job_id: str) -> dict:
        return self._run(flows.answer(Call("GET", f"/v1/jobs/{job_id}")))

    def jobs(self) -> list[dict]:
        """All of them, the newest first."""
        return self._run(flows.pages("/v1/jobs"))

    def cancel(self, job_id: str) -> dict:
        return self._run(flows.answer(Call("POST", f"/v1/jobs/{job_id}/cancel")))

    def rates(self) -> dict[str, float]:
        """Bytes of input a second that the service's workers have managed, by method."""
        return self._run(flows.rates())

    def public_keys(self) -> list[PublicKey]:
        """The service's public keys that were not revoked, the newest first. They prove no more than the connection does: pin them before they matter."""
        return self._run(flows.public_keys())

    def key_document(self) -> dict:
        """The answer of `GET /v1/keys`: all keys, and for how long each is good."""
        return self._run(flows.key_document())


def _connection(url: str | None, api_key: str | None, customer_key: bytes | None) -> dict:
    url = url or os.environ.get("MODELPRESS_URL") or f"http://{settings().host}:{settings().port}"
    file = settings().home / "api-key"
    api_key = api_key or os.environ.get("MODELPRESS_API_KEY") or (file.read_text().strip() if file.is_file() else "")
    if customer_key is None and settings().customer_key_file is not None:
        customer_key = customer_keys.read(settings().customer_key_file)
    headers = ({"Authorization": f"Bearer {api_key}"} if api_key else {}) | (customer_keys.headers_of(customer_key) if customer_key else {})
    return {"base_url": url, "headers": headers, "timeout": httpx.Timeout(120, connect=10), "follow_redirects": True}


def _raise_for(response: httpx.Response) -> None:
    if response.is_error:
        try:
            problem = response.json()
        except ValueError:
            problem = None
        if not isinstance(problem, dict) or "type" not in problem:
            problem = {"type": "internal-error", "title": "Not an answer of modelpress", "status": response.status_code}
            problem["detail"] = f"{response.url} answered {response.status_code}"
        raise error_of(problem)


def _unreachable(client: httpx.Client | httpx.AsyncClient, error: httpx.TransportError) -> Unavailable:
    why = str(error) or type(error).__name__
    return Unavailable(f"no service answers at {client.base_url} ({why}); start one with `modelpress up`, or name it with --url")


class Client(_Operations):
    """Blocking. Without arguments it talks to `MODELPRESS_URL` with `MODELPRESS_API_KEY`, else to the service of the home folder.

    Args:
        customer_key: 32 bytes of one's own: what is uploaded and made is stored under them (docs/encryption.md). Default: what MODELPRESS_CUSTOMER_KEY_FILE holds, or none.
    """

    def __init__(self, url: str | None = None, api_key: str | None = None, customer_key: bytes | None = None):
        self.http = httpx.Client(**_connection(url, api_key, customer_key))
        self._stopping = Event()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_) -> None:
        self.http.close()

    def events(self, job_id: str) -> Iterator[dict]:
        """A job's events from its first to its last, each `{"kind": "state" | "progress" | "log", ...}`. A connection that breaks is made anew."""
        last, failures = "0", 0
        while failures < RECONNECTS:
            try:
                with connect_sse(self.http, "GET", f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": last}, timeout=SILENCE) as source:
                    if source.response.is_error:
                        source.response.read()
                    _raise_for(source.response)
                    if source.response.status_code == 204:
                        return
                    for event in source.iter_sse():
                        if event.data:
                            last, failures = event.id, 0
                            yield {"kind": event.event} | json.loads(event.data)
            except httpx.TransportError as e:
                failures, error = failures + 1, e
                time.sleep(min(failures, 5))
        raise _unreachable(self.http, error)

    def _run(self, flow: Flow) -> Any:
        try:
            step = next(flow)
            while True:
                try:
                    response = self._do(step)
                except ModelpressError as e:
                    step = flow.throw(e)
                else:
                    step = flow.send(response)
        except StopIteration as end:
            return end.value
        finally:
            flow.close()

    def _do(self, step: Call | Pause | Together) -> Any:
        match step:
            case Pause():
                return self._stopped(step.seconds)
            case Together():
                return self._together(step)
            case _:
                return self._send(step)

    def _together(self, step: Together) -> list:
        with ThreadPoolExecutor(step.at_once) as pool:
            running = [pool.submit(self._run, flow) for flow in step.flows]
            try:
                return [one.result() for one in running]
            except BaseException:
                self._stopping.set()
                pool.shutdown(cancel_futures=True)
                self._stopping.clear()
                raise

    def _stopped(self, seconds: float = 0) -> None:
        """Raises:
        ModelpressError: another flow of the same `Together` has failed, within as many seconds.
        """
        if self._stopping.wait(seconds):
            raise ModelpressError("something else has failed")

    def _blocks(self, call: Call) -> Iterator[bytes]:
        for block in call.blocks():
            self._stopped()
            yield block

    def _send(self, call: Call) -> httpx.Response:
        try:
            with self.http.stream(**call.request(), content=self._blocks(call) if call.source else None) as response:
                if call.target is None or response.is_error:
                    response.read()
                    _raise_for(response)
                else:
                    for block in response.iter_bytes(CHUNK):
                        call.receive(block)
                return response
        except httpx.TransportError as e:
            raise _unreachable(self.http, e) from None


class AsyncClient(_Operations):
    """The same, awaited: `job = await client.submit(...)`."""

    def __init__(self, url: str | None = None, api_key: str | None = None, customer_key: bytes | None = None):
        self.http = httpx.AsyncClient(**_connection(url, api_key, customer_key))

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_) -> None:
        await self.http.aclose()

    async def _run(self, flow: Flow) -> Any:
        try:
            step = next(flow)
            while True:
                try:
                    response = await self._do(step)
                except ModelpressError as e:
                    step = flow.throw(e)
                else:
                    step = flow.send(response)
        except StopIteration as end:
            return end.value
        finally:
            flow.close()

    async def _do(self, step: Call | Pause | Together) -> Any:
        match step:
            case Pause():
                return await asyncio.sleep(step.seconds)
            case Together():
                return await self._together(step)
            case _:
                return await self._send(step)

    async def _together(self, step: Together) -> list:
        turn = asyncio.Semaphore(step.at_once)

        async def one(flow: Flow) -> Any:
            async with turn:
                return await self._run(flow)

        running = [asyncio.create_task(one(flow)) for flow in step.flows]
        try:
            return await asyncio.gather(*running)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _send(self, call: Call) -> httpx.Response:
        async def blocks() -> AsyncIterator[bytes]:
            for block in call.blocks():
                yield block

        try:
            async with self.http.stream(**call.request(), content=blocks() if call.source else None) as response:
                if call.target is None or response.is_error:
                    await response.aread()
                    _raise_for(response)
                else:
                    async for block in response.aiter_bytes(CHUNK):
                        call.receive(block)
                return response
        except httpx.TransportError as e:
            raise _unreachable(self.http, e) from None
