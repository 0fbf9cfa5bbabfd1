"""Sending files to a real service, through connections, servers and clients that end before they should."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from s3 import Proxy

from app import sending
from app.client import AsyncClient, Client
from app.config import settings
from app.errors import ChecksumMismatch, InputRefused, ModelpressError, Unavailable
from app.models import Upload

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Of the client; a large file has 1 MiB here."""
    monkeypatch.setenv("MODELPRESS_HOME", str(tmp_path / "home"))
    settings.cache_clear()
    monkeypatch.setattr(sending, "LARGE", 1 << 20)
    yield tmp_path / "home"
    settings.cache_clear()


@pytest.fixture
def file(model, tmp_path):
    path = tmp_path / "model.safetensors"
    data = model({"w": ("F32", [1000, 2000])})
    path.write_bytes(data[:-6_000_000] + random.Random(0).randbytes(6_000_000))
    return path


@pytest.fixture
def client(api):
    with Client(api.url, api.keys["alice"]) as made:
        yield made


class Broken(Exception):
    """The client ends here."""


class Moved:
    """A progress callback that adds up; `at` so many bytes it calls `then`, once."""

    def __init__(self, at: int = 1 << 60, then=None):
        self.total, self.first, self.at, self.then = 0, None, at, then

    def __call__(self, n: int) -> None:
        self.total += n
        self.first = n if self.first is None else self.first
        if self.total >= self.at:
            self.at = 1 << 60
            self.then()


def fail() -> None:
    raise Broken


def proved(made: dict, path: Path) -> None:
    assert made["files"] == [{"path": path.name, "size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}]


def remembered(home: Path) -> list[Path]:
    return [*(home / "uploads").glob("*")]


def test_a_large_file_goes_by_tus_and_a_small_one_does_not(api, client, file, home):
    moved = Moved()
    made = client.upload(file, kind="gradients", progress=moved)
    proved(made, file)
    assert (moved.total, made["kind"], remembered(home)) == (file.stat().st_size, "gradients", [])
    with api.session() as s:
        assert s.query(Upload).filter_by(artifact_id=made["id"]).count() == 1
    file.write_bytes(b"{}")
    small_file = file.rename(file.with_name("config.json"))
    made = client.upload(small_file)
    proved(made, small_file)
    with api.session() as s:
        assert s.query(Upload).filter_by(artifact_id=made["id"]).count() == 0


def test_a_client_that_ended_goes_on(api, client, file, home):
    with pytest.raises(Broken):
        client.upload(file, progress=Moved(5 << 20, fail))
    assert len(remembered(home)) == 1
    time.sleep(0.5)
    moved = Moved()
    with Client(api.url, api.keys["alice"]) as again:
        proved(again.upload(file, progress=moved), file)
    assert moved.total == file.stat().st_size and moved.first > 1 << 20 and remembered(home) == []


def test_an_upload_that_is_gone_begins_anew(api, client, alice, file, home):
    with pytest.raises(Broken):
        client.upload(file, progress=Moved(5 << 20, fail))
    (known,) = remembered(home)
    assert alice.delete(known.read_text(), headers={"Tus-Resumable": "1.0.0"}).status_code == 204
    proved(client.upload(file), file)
    known.write_text("http://elsewhere.example/v1/uploads/nonsense")
    proved(client.upload(file), file)


def test_a_file_that_changes_meanwhile_is_told(client, alice, file, home):
    def change() -> None:
        with file.open("r+b") as f:
            f.seek(-1000, os.SEEK_END)
            f.write(b"other bytes")

    with pytest.raises(Broken):
        client.upload(file, progress=Moved(5 << 20, fail))
    times = file.stat()
    change()
    with file.open("r+b") as f:
        f.seek(500)
        f.write(b"bytes that were sent before")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    before = alice.get("/v1/artifacts").json()["items"][:1]
    time.sleep(0.5)
    with pytest.raises(ChecksumMismatch):
        client.upload(file)
    assert alice.get("/v1/artifacts").json()["items"][:1] == before and remembered(home) == []
    proved(client.upload(file), file)


def test_what_is_refused_stays_refused_and_is_not_tried_again(client, file, home):
    file.write_bytes(b"\xff" * (3 << 20))
    for _ in range(2):
        with pytest.raises(InputRefused):
            client.upload(file)
        assert remembered(home) == []


def test_a_service_that_was_never_there_is_not_waited_for(file):
    with Client("http://127.0.0.1:9", "mp_x") as client, pytest.raises(Unavailable):
        client.upload(file)


@pytest.mark.parametrize("location", ["", "http://evil.example/", "/v1/jobs/x", "/v1/uploads/../../x"])
def test_an_address_is_one_of_the_service(file, home, location):
    with pytest.raises(ModelpressError):
        sending.Address(file, "s", "n", None).keep(location)
    sending.Address(file, "s", "n", None).keep("http://evil.example/v1/uploads/00000000-0000-4000-8000-000000000000?x")
    assert sending.Address(file, "s", "n", None).url == "/v1/uploads/00000000-0000-4000-8000-000000000000"
    assert sending.Address(file, "another", "n", None).url is None


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_folder_goes_several_files_at_a_time(api, file, tmp_path, kind, monkeypatch):
    folder, open_now, most, lock = tmp_path / "folder", set(), [0], threading.Lock()
    (folder / "sub").mkdir(parents=True)
    for i in range(6):
        (folder / "sub" / f"{i}.safetensors").write_bytes(file.read_bytes())
    (folder / "config.json").write_text("{}")
    plain = sending._resumable

    def counted(path, *more):
        with lock:
            open_now.add(path)
            most[0] = max(most[0], len(open_now))
        try:
            return (yield from plain(path, *more))
        finally:
            open_now.discard(path)

    monkeypatch.setattr(sending, "_resumable", counted)

    async def awaited() -> dict:
        async with AsyncClient(api.url, api.keys["alice"]) as client:
            return await client.upload(folder)

    if kind is Client:
        with Client(api.url, api.keys["alice"]) as client:
            made = client.upload(folder)
    else:
        made = asyncio.run(awaited())
    assert [f["path"] for f in made["files"]] == ["config.json", *(f"sub/{i}.safetensors" for i in range(6))]
    assert 2 <= most[0] <= sending.AT_ONCE
    (folder / "sub" / "3.safetensors").write_bytes(b"\xff" * (2 << 20))
    with pytest.raises(InputRefused):
        if kind is Client:
            with Client(api.url, api.keys["alice"]) as client:
                client.upload(folder)
        else:
            asyncio.run(awaited())


def test_a_server_that_is_away_for_a_moment(tmp_path, serve_api, file):
    """Killed in mid-upload; another one takes its place behind the same address."""
    (tmp_path / "service").mkdir()
    with serve_api(tmp_path / "service", upload_piece="1000000") as one:
        same_database = {"database_url": one.engine.url.render_as_string(hide_password=False)}
        with Proxy(one.port) as proxy, serve_api(one.home, **same_database) as two, Client(proxy.url, one.keys["alice"]) as client:

            def kill() -> None:
                while True:
                    with one.session() as s:
                        if s.query(Upload).filter(Upload.received > 0).count():
                            break
                os.kill(one.pid, signal.SIGKILL)
                proxy.target = two.port

            moved = Moved(7 << 20, kill)
            made = client.upload(file, progress=moved)
            proved(made, file)
            assert moved.total == file.stat().st_size
            proxy.shutdown()


def test_the_command_is_killed_and_given_again(api, tmp_path, home, model):
    path = tmp_path / "large.safetensors"
    data = model({"w": ("U8", [200 << 20])})
    path.write_bytes(data)
    command = [sys.executable, "-m", "app.cli", "upload", str(path), "--url", api.url, "--json"]
    environment = os.environ | {"MODELPRESS_API_KEY": api.keys["alice"], "MODELPRESS_HOME": str(home)}
    first = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def received() -> int:
        with api.session() as s:
            return max((u.received for u in s.query(Upload).filter_by(name=path.name)), default=0)

    while not received():
        assert first.poll() is None
        time.sleep(0.01)
    first.kill()
    first.wait()
    assert first.stdout.read() == b"" and len(remembered(home)) == 1
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    assert hashlib.sha256(data).hexdigest() in done.stdout and remembered(home) == []
    with api.session() as s:
        assert s.query(Upload).filter_by(name=path.name).count() == 1
