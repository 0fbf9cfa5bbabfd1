"""Where an upload's bytes lie: in a folder and in a bucket, with writers that die, break off, sleep and wake up."""

from __future__ import annotations

import asyncio
import hashlib

import pytest
from homes import own_home
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import update

from app import appending, resumable
from app.db import session
from app.errors import Locked, NotFound, OffsetMismatch, StorageDamaged, Unavailable
from app.models import Artifact, Upload
from app.staging import key_of, staging
from app.storage import Storage


@pytest.fixture(params=["folder", "s3"], scope="module")
def storage(request, tmp_path_factory):
    with own_home(tmp_path_factory.mktemp("home"), upload_piece="1000", max_open_uploads="100000"):
        yield Storage() if request.param == "folder" else Storage(f"s3://{request.getfixturevalue('s3').bucket()}/a prefix")


async def body(*parts: bytes):
    for part in parts:
        yield part


def begun(storage: Storage, length: int) -> Upload:
    return resumable.create(storage, owner="o", name="config.json", kind="model", length=length, sha256=None, metadata="")


def row(ident: str) -> Upload:
    with session() as s:
        return s.get_one(Upload, ident)


def append(storage: Storage, upload: Upload, *parts: bytes) -> None:
    asyncio.run(appending.append(storage, now := row(upload.id), now.received, body(*parts)))


def kept(storage: Storage, upload: Upload) -> bytes:
    with session() as s:
        (file,) = s.get_one(Artifact, row(upload.id).artifact_id).files
    data = storage.read(file.sha256)
    assert hashlib.sha256(data).hexdigest() == file.sha256 and len(data) == file.size
    return data


@hypothesis_settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(min_size=1, max_size=5000), cuts=st.lists(st.tuples(st.integers(0, 3000), st.booleans(), st.booleans()), max_size=6))
def test_pieces_make_the_whole(storage, data, cuts):
    """`forgotten`: another process goes on. `stale`: a writer that died had written more than it committed."""
    data = b"{}" + data  # the head of no other format
    upload = begun(storage, len(data))
    for size, forgotten, stale in cuts:
        at = row(upload.id).received
        if at + size >= len(data):
            break
        if stale:
            with session() as s, s.begin():
                fence = resumable.claim(s, upload.id, at, True)
            with staging(storage).open(upload.id) as place:
                place.begin(at, fence)
                asyncio.run(place.write(body(b"not what was committed")))
            with session() as s, s.begin():
                resumable.write(s, upload.id, fence, lease_until=None)
        append(storage, upload, data[at : at + size // 2], data[at + size // 2 : at + size])
        assert row(upload.id).received == at + size
        if forgotten:
            appending._hashes.clear()
    append(storage, upload, data[row(upload.id).received :])
    assert kept(storage, upload) == data
    assert not [*storage.list(key_of(upload.id))] and not storage.exists(key_of(upload.id))


def test_one_writer_at_a_time(storage):
    upload = begun(storage, 10)

    async def both() -> None:
        async def slow():
            yield b"0123"
            with pytest.raises(Locked):
                await appending.append(storage, upload, 0, body(b"abc"))
            yield b"456789"

        await appending.append(storage, upload, 0, slow())

    asyncio.run(both())
    assert kept(storage, upload) == b"0123456789"
    with pytest.raises(OffsetMismatch):
        asyncio.run(appending.append(storage, upload, 4, body(b"abc")))


def test_a_writer_that_was_overtaken_writes_nothing_more(storage):
    """In a folder nobody overtakes a writer that may be alive. In a bucket it is overtaken once its lease has run out."""
    upload, overtaken = begun(storage, 10), []

    async def late():
        yield b"xxxx"
        with session() as s, s.begin():
            s.execute(update(Upload).where(Upload.id == upload.id).values(lease_until=0))
        try:
            await appending.append(storage, upload, 0, body(b"01234"))
            overtaken.append(True)
        except Locked:
            pass
        yield b"xxxx"

    try:
        asyncio.run(appending.append(storage, upload, 0, late()))
    except Locked:
        assert overtaken
    after = b"01234" if overtaken else b"xxxxxxxx"
    assert row(upload.id).received == len(after)
    append(storage, upload, b"9" * (10 - len(after)))
    assert kept(storage, upload) == after + b"9" * (10 - len(after))


def test_bytes_that_were_committed_and_are_gone_are_missed(storage):
    upload = begun(storage, 3000)
    append(storage, upload, b"x" * 2000)
    for found in [*storage.list("tmp/uploads")]:
        storage.delete(found.key)
    appending._hashes.clear()
    with pytest.raises((NotFound, StorageDamaged)):
        append(storage, upload, b"x" * 1000)
    assert row(upload.id).artifact_id is None


@pytest.mark.parametrize("parts", [[b"0123456789"], [b"0123", b"456789"]])
def test_what_breaks_off_after_the_bytes_have_moved_needs_none_of_them_again(storage, parts, monkeypatch):
    upload = begun(storage, 10)
    for part in parts[:-1]:
        append(storage, upload, part)
    with monkeypatch.context() as m, pytest.raises(Unavailable):
        m.setattr("app.upload.refer", lambda *_: (_ for _ in ()).throw(Unavailable("the database is away")))
        append(storage, upload, parts[-1])
    assert row(upload.id).artifact_id is None and storage.exists(hashlib.sha256(b"0123456789").hexdigest())
    append(storage, upload)
    assert kept(storage, upload) == b"0123456789" and row(upload.id).received == 10
    assert [f.key for f in storage.list("tmp/uploads") if upload.id in f.key] == []
