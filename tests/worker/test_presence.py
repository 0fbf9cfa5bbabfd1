"""A worker's row, kept by its own thread."""

from __future__ import annotations

import time

import pytest

from app import workers
from app.config import settings
from app.db import Base, engine, session
from app.models import Worker
from worker.presence import Presence


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELPRESS_HOME", str(tmp_path))
    monkeypatch.setenv("MODELPRESS_HEARTBEAT", "0.05")
    settings.cache_clear()
    engine.cache_clear()
    yield tmp_path
    engine().dispose()
    settings.cache_clear()
    engine.cache_clear()


def rows() -> list[Worker]:
    with session() as s:
        return workers.live(s)


def until(condition) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came about")


def test_it_is_there_while_its_process_is_busy_and_gone_at_the_end(home):
    Base.metadata.create_all(engine())
    here = Presence(["compress.cpu"], "cpu", {"holds": True})
    here.start()
    (first,) = rows()
    assert (first.id, first.queues, first.device, first.jail) == (here.id, ["compress.cpu"], "cpu", {"holds": True}) and first.threads >= 1
    until(lambda: rows()[0].seen_at > first.seen_at)
    here.stop()
    assert rows() == []


def test_one_whose_row_was_removed_comes_back(home):
    Base.metadata.create_all(engine())
    here = Presence(["compress.cpu"], "cpu", {"holds": True})
    here.start()
    with session() as s, s.begin():
        workers.leave(s, here.id)
    until(rows)
    here.stop()


def test_a_database_that_comes_later_is_told_later(home):
    here = Presence(["compress.cpu"], "cpu", {"holds": True})
    here.start()
    Base.metadata.create_all(engine())
    until(rows)
    here.stop()
