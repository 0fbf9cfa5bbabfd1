"""What a bucket does that a folder does not: parts, copies on the store's side, and a network that fails."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import s3 as store

from app.errors import StorageFull, Unavailable
from app.storage import BATCH, Storage, blob_key
from app.storage.bucket import MAX_PARTS, MIN_PART, Bucket

PREFIX = "a prefix"


@pytest.fixture
def bucket(s3):
    return s3.bucket()


@pytest.fixture
def storage(bucket):
    return Storage(f"s3://{bucket}/{PREFIX}")


@pytest.fixture
def proxy(s3):
    made = store.Proxy(s3.port)
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def proxied(bucket, proxy, monkeypatch):
    """The same bucket through the proxy."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    return Storage(f"s3://{bucket}/{PREFIX}")


@contextmanager
def answering(status: int, code: str):
    """A store that says the same to everything; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else body)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

        def log_message(self, *_) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@contextmanager
def impatient(monkeypatch):
    """A store that is away is given up at once."""
    monkeypatch.setattr("app.storage.bucket._RETRY", {"max_retries": 1})
    yield


@pytest.mark.parametrize("size", [0, 1, MIN_PART * MAX_PARTS, MIN_PART * MAX_PARTS + 1, 1 << 40, 5 << 40])
def test_parts_fit_into_what_s3_takes(storage, size):
    part = storage.place.part(size)
    assert part >= 5 << 20 and -(-size // part) <= MAX_PARTS


def test_one_request_writes_what_fits_into_a_part(storage, s3, bucket):
    storage.put("tmp/whole", [b"x" * 1000], 1000)
    asyncio.run(storage.put_stream("tmp/stream", _pieces(bytes(MIN_PART - 1))))
    storage.put("tmp/parts", [bytes(MIN_PART), b"x"], MIN_PART + 1)
    tags = {f.key: f.tag.strip('"') for f in storage.list("tmp")}
    assert tags["tmp/whole"] == hashlib.md5(b"x" * 1000).hexdigest()
    assert "-" not in tags["tmp/stream"] and tags["tmp/parts"].endswith("-2")
    assert s3.objects(bucket) == [f"{PREFIX}/tmp/{n}" for n in ("parts", "stream", "whole")]


async def _pieces(data: bytes):
    yield data


def test_what_one_request_cannot_copy_is_copied_in_parts(storage, s3, bucket, monkeypatch):
    data = os.urandom(2 * (5 << 20) + 12345)
    _, sha = storage.put("tmp/uploads/1", [data])
    monkeypatch.setattr("app.storage.bucket.MAX_COPY", 1 << 20)
    monkeypatch.setattr("app.storage.s3_client.COPY_PART", 5 << 20)
    storage.promote("tmp/uploads/1", sha)
    assert storage.read(sha) == data and storage.stat(sha).tag.strip('"').endswith("-3")
    assert s3.objects(bucket) == [f"{PREFIX}/{blob_key(sha)}"] and s3.unfinished(bucket) == []
    with pytest.raises(Unavailable):
        storage.place.client.copy("tmp/gone", "tmp/copy", len(data))
    with pytest.raises(FileNotFoundError):
        storage.promote("tmp/gone", sha)
    assert s3.unfinished(bucket) == []


def test_uploads_that_a_killed_process_began_are_aborted_when_old(storage, s3, bucket):
    mine = storage.place.client.create("tmp/uploads/half")
    s3.client.create_multipart_upload(Bucket=bucket, Key="others/half")
    storage.put("tmp/uploads/whole", [b"x"])
    assert storage.drop_unfinished(1e9) == 0 and len(s3.unfinished(bucket)) == 2  # moto says that all of them are of 2010
    assert storage.drop_unfinished(3600) == 1 and s3.unfinished(bucket) == ["others/half"]
    storage.place.client.abort("tmp/uploads/half", mine)  # gone already
    assert storage.read("tmp/uploads/whole") == b"x"


def test_a_broken_connection_repeats_only_the_range_that_broke(storage, proxied, proxy, tmp_path):
    data = os.urandom(10 * BATCH)
    _, sha = storage.put("tmp/1", [data], len(data))
    storage.promote("tmp/1", sha)
    proxy.cuts, proxy.after = 3, BATCH // 2
    assert proxied.get_file(sha, tmp_path / "copy") == len(data) and (tmp_path / "copy").read_bytes() == data
    assert proxy.cuts == 0 and proxy.sent < len(data) + 3 * BATCH + 100_000


def test_an_upload_survives_broken_connections(storage, proxied, proxy, s3, bucket):
    data = os.urandom(4 * MIN_PART)
    proxy.cuts, proxy.after = 3, 100
    size, sha = proxied.put("tmp/1", [data], len(data))
    assert (size, sha) == (len(data), hashlib.sha256(data).hexdigest()) and storage.read("tmp/1") == data
    assert proxy.cuts == 0
    storage.drop_unfinished(0)  # an upload whose beginning was not answered has been begun again
    assert s3.unfinished(bucket) == []


def test_a_store_that_is_away_is_unavailable(monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{store.free_port()}")
    with impatient(monkeypatch):
        _all_fail(Storage("s3://bucket/x"), Unavailable, tmp_path)


@pytest.mark.parametrize(
    "status, code, error",
    [
        (503, "SlowDown", Unavailable),
        (500, "InternalError", Unavailable),
        (403, "AccessDenied", Unavailable),
        (401, "Unauthorized", Unavailable),
        (507, "XMinioStorageFull", StorageFull),
        (404, "NoSuchBucket", Unavailable),
    ],
)
def test_what_a_store_answers_is_said(status, code, error, monkeypatch, tmp_path):
    with answering(status, code) as url, impatient(monkeypatch):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        storage = Storage("s3://bucket/x")
        for put in (lambda: storage.put("k", [b"x"], 1), lambda: storage.put("k", [b"x"])):
            with pytest.raises(error) as raised:
                put()
            assert "127.0.0.1" not in raised.value.detail and raised.value.retry_after
        if error is Unavailable:
            with pytest.raises(error):
                storage.read("k")


def _all_fail(storage: Storage, error: type[Exception], tmp_path) -> None:
    sha = hashlib.sha256(b"x").hexdigest()
    calls = {
        "put": lambda: storage.put("tmp/1", [b"x"]),
        "stream in": lambda: asyncio.run(storage.put_stream("tmp/1", _pieces(bytes(2 * MIN_PART)))),
        "read": lambda: storage.read("tmp/1"),
        "stream out": lambda: list(storage.stream("tmp/1", 0, 3 * BATCH)),
        "stat": lambda: storage.exists("tmp/1"),
        "list": lambda: list(storage.list("tmp")),
        "delete": lambda: storage.delete("tmp/1"),
        "promote": lambda: storage.promote("tmp/1", sha),
        "get_file": lambda: storage.get_file(sha, tmp_path / "copy"),
        "check": storage.check,
    }
    for name, call in calls.items():
        with pytest.raises(error):
            call()
            pytest.fail(name)
    assert not (tmp_path / "copy").exists()


def test_a_silent_store_does_not_hold_the_check_up(proxied, proxy):
    proxy.silent = True
    try:
        with pytest.raises(Unavailable):
            proxied.check()
    finally:
        proxy.silent = False
    proxied.check()


def test_other_processes_find_the_same_bucket(bucket):
    assert isinstance(Storage(f"s3://{bucket}").place, Bucket)
    Storage(f"s3://{bucket}/{PREFIX}").put("tmp/1", [b"x"])
    assert Storage(f"s3://{bucket}").read(f"{PREFIX}/tmp/1") == b"x"
