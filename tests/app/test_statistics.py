"""Statistics that are kept: found by what they depend on, referred to, forgotten, collected."""

from __future__ import annotations

import hashlib

import pytest
from homes import KINDS, own_home
from sqlalchemy import select, update

from app import collect, retention, statistics
from app.blobs import hold
from app.config import settings
from app.db import now, session
from app.errors import Unavailable
from app.models import Blob, Statistic
from app.storage import Storage

WITH = {"calibration": "c" * 64, "labels": "l" * 64}


@pytest.fixture(params=KINDS)
def storage(request, tmp_path):
    with own_home(tmp_path, request.param):
        yield Storage()


def put(storage: Storage, data: bytes) -> str:
    _, sha256 = storage.put("tmp/one/1/x", [data])
    with session() as s, s.begin():
        hold(s, sha256, len(data))
    storage.promote("tmp/one/1/x", sha256)
    return sha256


def kept(storage: Storage, key: str, data: bytes) -> str:
    sha256 = put(storage, data)
    with session() as s, s.begin():
        statistics.keep(s, storage, key, "o", sha256, len(data))
    return sha256


def found(key: str) -> str | None:
    with session() as s, s.begin():
        return statistics.find(s, key)


def test_the_key_is_of_everything_that_they_depend_on():
    def key(owner="o", digest="d", companions=WITH, seed=0, backend="cpu"):
        return statistics.key(owner, digest, companions, seed, backend)

    others = [key("p"), key(digest="e"), key(companions={"calibration": "c" * 64}), key(companions=WITH | {"labels": "m" * 64}), key(companions=WITH | {"calibration": "d" * 64}),
              key(seed=1), key(backend="cuda")]  # fmt: skip
    assert len({key(), *others}) == 8 and key() == key(companions=WITH | {"gradients": "g" * 64})


def test_what_is_kept_is_found_and_replaced(storage):
    assert found("k") is None
    one = kept(storage, "k", b"one")
    assert found("k") == one and found("another") is None
    two = kept(storage, "k", b"two")
    assert found("k") == two
    with session() as s, s.begin():
        statistics.forget(s, "k")
    assert found("k") is None


def test_bytes_that_are_gone_are_not_kept(storage):
    with pytest.raises(Unavailable), session() as s, s.begin():
        statistics.keep(s, storage, "k", "o", hashlib.sha256(b"x").hexdigest(), 1)
    assert found("k") is None


def test_no_collection_takes_what_is_kept_until_nobody_has_asked_for_a_week(storage):
    sha256, asked = kept(storage, "k", b"one"), kept(storage, "asked", b"two")
    with session() as s, s.begin():
        s.execute(update(Statistic).values(used_at=now() - statistics.KEPT - 1))
    assert collect.collect(storage) == 0
    with session() as s:
        assert s.scalars(select(Blob.marked_at)).all() == [None, None]
    assert found("asked") == asked
    retention.expire()
    assert found("k") is None and found("asked") == asked
    collect.collect(storage)
    with session() as s, s.begin():
        s.execute(update(Blob).where(Blob.marked_at.is_not(None)).values(marked_at=now() - settings().orphan_age - 1))
    assert collect.collect(storage) == 1 and [storage.exists(b) for b in (sha256, asked)] == [False, True]
