"""Storage in a real folder and in a real bucket: whole objects or none, verified copies, a full disk. What only S3 does is in test_bucket.py."""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource
import signal
import subprocess
import time
from contextlib import contextmanager

import pytest

from app.errors import StorageDamaged, StorageFull
from app.storage import BATCH, Storage, blob_key
from app.storage.folder import Folder


@pytest.fixture
def folder(tmp_path):
    return Storage(f"file://{tmp_path / 'a store'}")


@pytest.fixture(params=["folder", "s3"])
def storage(request):
    return request.getfixturevalue("folder") if request.param == "folder" else Storage(f"s3://{request.getfixturevalue('s3').bucket()}/a prefix")


def files(storage: Storage) -> list[str]:
    """Everything that takes room, half written files and uploads too."""
    if isinstance(storage.place, Folder):
        root = storage.place.path
        return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
    bucket, client = storage.place.client.bucket, storage.place.client.client
    unfinished = [f"{u['Key']}#1" for u in client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])]
    return sorted([f.key for f in storage.list("")] + [u.removeprefix("a prefix/") for u in unfinished])


async def collected(batches) -> bytes:
    return b"".join([b async for b in batches])


async def pieces(data: bytes, step: int, fail: type[BaseException] | None = None):
    for at in range(0, len(data), step):
        yield data[at : at + step]
    if fail:
        raise fail


@contextmanager
def file_size_limit(size: int):
    """No file of this process may grow beyond `size`: the disk is full, as far as the process can tell."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("size", [0, 1, BATCH - 1, BATCH, 2 * BATCH + 5, 5 * BATCH + 1])
def test_what_is_put_is_read(storage, tmp_path, size):
    data = os.urandom(size)
    expected = size, hashlib.sha256(data).hexdigest()
    (tmp_path / "f").write_bytes(data)
    assert storage.put("tmp/a", [data[:100], data[100:]]) == expected
    assert storage.put_file("tmp/b", tmp_path / "f") == expected
    assert asyncio.run(storage.put_stream("tmp/c", pieces(data, 65536))) == expected
    for key in ("tmp/a", "tmp/b", "tmp/c"):
        assert storage.read(key) == data == b"".join(storage.stream(key)) and storage.stat(key).size == size
    assert storage.read("tmp/a", size // 3, size // 2) == data[size // 3 : size // 2] == b"".join(storage.stream("tmp/a", size // 3, size // 2))
    assert asyncio.run(collected(storage.stream_async("tmp/a", size // 3, size))) == data[size // 3 :]


def test_keys_may_be_any_safe_path(storage):
    for key in ("tmp/j/1/files/a b/c%20.txt", "tmp/j/1/files/ü/日本.json", "tmp/j/1/files/q?#x&[1]"):
        storage.put(key, [b"x"])
        assert storage.read(key) == b"x"
    assert len(list(storage.list("tmp/j/1"))) == 3 and storage.list("tmp/j/2") is not None
    storage.delete_all("tmp/j")
    assert files(storage) == [] and list(storage.list("tmp/j")) == []


def test_a_promoted_object_is_a_blob(storage):
    size, sha = storage.put("tmp/uploads/1", [b"data"])
    storage.promote("tmp/uploads/1", sha)
    assert files(storage) == [blob_key(sha)] and storage.read(sha) == b"data" and storage.exists(sha) and not storage.exists("tmp/uploads/1")
    storage.put("tmp/uploads/2", [b"data"])
    storage.promote("tmp/uploads/2", sha)
    assert files(storage) == [blob_key(sha)]
    storage.delete(sha, sha)
    assert not storage.exists(sha)


@pytest.mark.parametrize("fail", [ValueError, asyncio.CancelledError])
def test_a_broken_stream_leaves_nothing(storage, fail):
    with pytest.raises(fail):
        asyncio.run(storage.put_stream("tmp/uploads/1", pieces(bytes(6 * BATCH), 1 << 20, fail)))
    assert files(storage) == []

    def broken():
        yield bytes(6 * BATCH)
        raise ValueError

    with pytest.raises(ValueError):
        storage.put("tmp/uploads/1", broken())
    assert files(storage) == []


def test_a_cancelled_stream_leaves_nothing(storage):
    async def cancelled():
        async def endless():
            while True:
                yield bytes(1 << 20)
                await asyncio.sleep(0.005)

        task = asyncio.create_task(storage.put_stream("tmp/uploads/1", endless()))
        while not files(storage):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert files(storage) == []


def test_a_full_disk_is_said_and_leaves_nothing(folder, tmp_path):
    storage = folder
    (tmp_path / "f").write_bytes(bytes(2 * BATCH))
    with file_size_limit(BATCH + 1000):
        for put in (lambda: storage.put_file("tmp/1", tmp_path / "f"), lambda: asyncio.run(storage.put_stream("tmp/2", pieces(bytes(6 * BATCH), 1 << 20)))):
            with pytest.raises(StorageFull):
                put()
    assert files(storage) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")
def test_a_full_file_system(tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip("mount is not allowed here")
    try:
        storage = Storage(f"file://{tmp_path}/store")
        with pytest.raises(StorageFull):
            asyncio.run(storage.put_stream("tmp/2", pieces(bytes(6 * BATCH), 1 << 20)))
        assert files(storage) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_copy_is_verified(storage, tmp_path):
    data = os.urandom(BATCH + 1)
    _, sha = storage.put("tmp/1", [data])
    storage.promote("tmp/1", sha)
    assert storage.get_file(sha, tmp_path / "copy") == len(data) and (tmp_path / "copy").read_bytes() == data
    with pytest.raises(FileExistsError):
        storage.get_file(sha, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    for damage in (data[:-1] + bytes([data[-1] ^ 1]), data[:-1], b"", None):
        storage.delete(sha)
        if damage is not None:
            storage.put(blob_key(sha), [damage])
        with pytest.raises(StorageDamaged, match=sha):
            storage.get_file(sha, tmp_path / "other")
        assert not (tmp_path / "other").exists()


def test_a_copy_can_be_broken_off(storage, tmp_path):
    _, sha = storage.put("tmp/1", [os.urandom(4 * BATCH)])
    storage.promote("tmp/1", sha)

    def enough(nbytes: int) -> None:
        raise KeyError(nbytes)

    with pytest.raises(KeyError):
        storage.get_file(sha, tmp_path / "copy", enough)
    assert not (tmp_path / "copy").exists()


def test_what_a_killed_process_left_is_dropped_when_old(folder):
    storage = folder
    storage.put("tmp/uploads/whole", [b"x"])
    left = storage.place.path / "tmp/uploads/half#1"
    left.write_bytes(b"x")
    assert storage.drop_unfinished(3600) == 0
    os.utime(left, (time.time() - 7200,) * 2)
    assert storage.drop_unfinished(3600) == 1 and files(storage) == ["tmp/uploads/whole"]


def test_check(storage):
    storage.check()
    assert files(storage) == []


def test_a_url_that_is_neither_is_refused():
    with pytest.raises(ValueError, match="file:///FOLDER or s3://BUCKET/PREFIX"):
        Storage("http://example.com/x")
