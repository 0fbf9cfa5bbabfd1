"""Two owners, the same bytes: stored once, and there for as long as one of them wants them. In a folder and in a bucket."""

from __future__ import annotations

import asyncio

import pytest
from homes import own_home
from sqlalchemy import delete, func, select

from app import sweep
from app.collect import collect
from app.db import session
from app.config import settings
from app.models import Artifact, Blob
from app.storage import Storage
from app.upload import receive


@pytest.fixture(params=["folder", "s3"])
def storage(request, tmp_path):
    url = f"file://{tmp_path / 'store'}" if request.param == "folder" else f"s3://{request.getfixturevalue('s3').bucket()}/store"
    with own_home(tmp_path, storage_url=url, orphan_age="0"):
        yield Storage()


def upload(storage: Storage, owner: str, data: bytes) -> Artifact:
    async def body():
        yield data

    return asyncio.run(receive(storage, body(), owner=owner, name="m.safetensors", kind="model", length=len(data), limit=1 << 30, sha256=None))


def remove(artifact: Artifact) -> None:
    with session() as s, s.begin():
        s.delete(s.get_one(Artifact, artifact.id))


def collected(storage: Storage) -> int:
    """Marked by the first one, deleted by the second."""
    sweep.drop_orphans(storage)
    return collect(storage) + collect(storage)


def test_the_same_bytes_are_stored_once_and_outlive_one_of_their_owners(storage, model):
    data = model()
    first, second = upload(storage, "alice", data), upload(storage, "bob", data)
    (sha256,) = {f.sha256 for a in (first, second) for f in a.files}
    assert first.id != second.id and len(list(storage.list(""))) == 1
    with session() as s:
        assert s.scalar(select(func.count()).select_from(Blob)) == 1
    remove(first)
    assert collected(storage) == 0 and storage.read(sha256) == data
    third = upload(storage, "carol", data)
    remove(second)
    assert collected(storage) == 0 and storage.read(sha256) == data
    remove(third)
    assert collected(storage) == 1 and list(storage.list("")) == []


def test_an_upload_takes_the_mark_off(storage, model, monkeypatch):
    """The bytes were to be collected; then somebody brings them again."""
    data = model(fill=b"\x02")
    remove(upload(storage, "alice", data))
    monkeypatch.setattr(settings(), "orphan_age", 3600.0)
    assert collect(storage) == 0  # marked
    upload(storage, "bob", data)
    monkeypatch.setattr(settings(), "orphan_age", 0.0)
    assert collect(storage) == 0 and len(list(storage.list("blobs"))) == 1
    with session() as s, s.begin():
        s.execute(delete(Artifact))
    assert collected(storage) == 1


def test_bytes_that_were_damaged_are_made_good_by_the_next_upload(storage, model):
    data = model(fill=b"\x03")
    sha256 = upload(storage, "alice", data).files[0].sha256
    storage.put(next(storage.list("blobs")).key, [data[:-1] + b"\x04"])
    assert storage.read(sha256) != data
    upload(storage, "bob", data)
    assert storage.read(sha256) == data
