"""What a worker process does when it starts: no job without a jail that holds, unless the settings ask for it."""

from __future__ import annotations

import logging

import pytest

from app.config import settings
from worker import tasks


@pytest.mark.parametrize("wanted, holds, starts", [("required", True, True), ("required", False, False), ("best-effort", False, True), ("best-effort", True, True)])
def test_a_worker_starts_at_the_level_that_is_asked_for(monkeypatch, caplog, tmp_path, wanted, holds, starts):
    registered = []
    monkeypatch.setattr(settings(), "jail", wanted)
    monkeypatch.setattr(settings(), "home", tmp_path)
    monkeypatch.setattr(tasks, "probe", lambda: {"holds": holds, "escaped": [] if holds else ["fork"]})
    monkeypatch.setattr(tasks.Presence, "start", lambda self: registered.append(self))
    monkeypatch.setattr(tasks, "serving", lambda zygotes, entry: type("Started", (), {"start": lambda self: None})())
    with caplog.at_level(logging.WARNING, logger="worker.tasks"):
        if starts:
            tasks.prepare()
        else:
            with pytest.raises(SystemExit, match="fork"):
                tasks.prepare()
    (presence,) = registered
    assert bool(presence.queues) == starts and presence.jail["holds"] == holds and presence.jail["level"] == wanted
    assert ("does not hold" in caplog.text) == (starts and not holds)


def test_a_home_that_children_may_read_is_never_taken(monkeypatch, tmp_path):
    monkeypatch.setattr(settings(), "jail", "best-effort")
    monkeypatch.setattr(tasks, "probe", lambda: {"holds": True})
    monkeypatch.setattr(tasks, "exposed", lambda home: tmp_path)
    monkeypatch.setattr(tasks.Presence, "start", lambda self: None)
    with pytest.raises(SystemExit, match="another home"):
        tasks.prepare()
