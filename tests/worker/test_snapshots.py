from __future__ import annotations

import os

import pytest
from homes import own_home

from app import sweep
from app.db import session
from app.models import QUEUED, RUNNING, SUCCEEDED, Job
from app.storage import Storage
from worker.snapshots import FOLDER, Snapshots


@pytest.fixture
def storage(tmp_path):
    with own_home(tmp_path):
        yield Storage()


def put(out, name: str, data: bytes) -> None:
    """As a child does."""
    (out / FOLDER).mkdir(exist_ok=True)
    (out / "part").write_bytes(data)
    os.replace(out / "part", out / FOLDER / name)


def test_the_last_ones_are_found_by_the_next_attempt(storage, tmp_path):
    snapshots = Snapshots(storage, "job", tmp_path)
    assert snapshots.fetch(tmp_path / "with") is None
    snapshots.keep()
    for data in (b"one", b"two" * 3_000_000):
        put(tmp_path, "training.safetensors", data)
        snapshots.keep()
    put(tmp_path, "00001.safetensors", b"three")
    snapshots.keep()
    found = Snapshots(storage, "job", tmp_path / "other").fetch(tmp_path / "with")
    assert {p.name: p.read_bytes() for p in found.iterdir()} == {"training.safetensors": b"two" * 3_000_000, "00001.safetensors": b"three"}
    snapshots.drop()
    assert snapshots.fetch(tmp_path / "again") is None and not [*storage.list("tmp")]
    snapshots.drop()


def test_what_has_not_changed_is_not_stored_again(storage, tmp_path, monkeypatch):
    snapshots, stored = Snapshots(storage, "job", tmp_path), []
    put_there = storage.put
    monkeypatch.setattr(storage, "put", lambda key, *rest: stored.append(key.rsplit("/", 1)[1]) or put_there(key, *rest))
    put(tmp_path, "00000.safetensors", b"a")
    snapshots.keep()
    put(tmp_path, "00001.safetensors", b"b")
    snapshots.keep()
    snapshots.keep()
    assert stored == ["00000.safetensors", "00001.safetensors"]


@pytest.mark.parametrize("what", ["link", "folder", "pipe", "linked folder", "odd name"])
def test_what_is_no_file_of_the_childs_own_is_not_read(storage, tmp_path, what):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.safetensors").write_bytes(b"not the child's")
    path = tmp_path / FOLDER / "a.safetensors"
    if what == "linked folder":
        path.parent.symlink_to(tmp_path / "elsewhere")
    else:
        path.parent.mkdir()
    if what == "link":
        path.symlink_to(tmp_path / "elsewhere" / "a.safetensors")
    elif what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "odd name":
        (path.parent / "..a.safetensors").write_bytes(b"x")
    snapshots = Snapshots(storage, "job", tmp_path)
    snapshots.keep()
    assert snapshots.fetch(tmp_path / "x") is None


def test_no_more_is_stored_than_a_models_states_take(storage, tmp_path):
    snapshots = Snapshots(storage, "job", tmp_path, model=1)
    put(tmp_path, "00000.safetensors", b"a state")
    put(tmp_path, "00001.safetensors", b"")
    os.truncate(tmp_path / FOLDER / "00001.safetensors", 1 << 40)  # a hole
    put(tmp_path, "00002.safetensors", b"another")
    snapshots.keep()
    assert sorted(p.name for p in snapshots.fetch(tmp_path / "x").iterdir()) == ["00000.safetensors", "00002.safetensors"]


def test_the_sweep_leaves_those_of_jobs_that_go_on(storage):
    with session() as s, s.begin():
        for ident, state, fence in (("goes-on", RUNNING, 1), ("waits", QUEUED, 2), ("fresh", QUEUED, 0), ("done", SUCCEEDED, 1)):
            s.add(Job(id=ident, owner="o", spec={}, queue="compress.cpu", state=state, fence=fence))
    claims = sweep.live_claims()
    assert ("goes-on", "recovery") in claims and ("waits", "recovery") in claims
    assert ("fresh", "recovery") not in claims and ("done", "recovery") not in claims
