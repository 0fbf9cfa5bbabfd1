from __future__ import annotations

import os

import pytest
from homes import own_home

from app import sweep
from app.db import session
from app.models import QUEUED, RUNNING, SUCCEEDED, Job
from app.storage import Storage
from worker.snapshots import NAME, Snapshots


@pytest.fixture
def storage(tmp_path):
    with own_home(tmp_path):
        yield Storage()


def test_the_last_one_is_found_by_the_next_attempt(storage, tmp_path):
    snapshots = Snapshots(storage, "job", tmp_path)
    assert snapshots.fetch(tmp_path / "with" / "x") is None
    snapshots.keep()
    for data in (b"one", b"two" * 3_000_000):
        (tmp_path / "part").write_bytes(data)
        os.replace(tmp_path / "part", tmp_path / NAME)
        snapshots.keep()
    snapshots.keep()
    found = Snapshots(storage, "job", tmp_path / "other").fetch(tmp_path / "with" / "x")
    assert found.read_bytes() == b"two" * 3_000_000
    snapshots.drop()
    assert snapshots.fetch(tmp_path / "with" / "x") is None and not [*storage.list("tmp")]
    snapshots.drop()


@pytest.mark.parametrize("what", ["link", "folder", "pipe"])
def test_what_is_no_file_is_not_read(storage, tmp_path, what):
    (tmp_path / "secret").write_bytes(b"not the child's")
    if what == "link":
        (tmp_path / NAME).symlink_to(tmp_path / "secret")
    elif what == "folder":
        (tmp_path / NAME).mkdir()
    else:
        os.mkfifo(tmp_path / NAME)
    snapshots = Snapshots(storage, "job", tmp_path)
    snapshots.keep()
    assert snapshots.fetch(tmp_path / "x") is None


def test_the_sweep_leaves_those_of_jobs_that_go_on(storage):
    with session() as s, s.begin():
        for ident, state, fence in (("goes-on", RUNNING, 1), ("waits", QUEUED, 2), ("fresh", QUEUED, 0), ("done", SUCCEEDED, 1)):
            s.add(Job(id=ident, owner="o", spec={}, queue="compress.cpu", state=state, fence=fence))
    claims = sweep.live_claims()
    assert ("goes-on", "recovery") in claims and ("waits", "recovery") in claims
    assert ("fresh", "recovery") not in claims and ("done", "recovery") not in claims
