"""The clock of an attempt's stages, and what it takes from a child."""

from __future__ import annotations

from app.models import Job
from worker.stages import Stages


def test_a_stage_ends_when_the_next_one_begins():
    stages = Stages()
    stages.input_bytes = 100
    for stage, nbytes in (("fetch", None), ("compress", None), ("store", 7)):
        stages.enter(stage, nbytes)
    stages.leave()
    assert list(stages.seconds) == ["fetch", "compress", "store"] and min(stages.seconds.values()) >= 0
    assert stages.bytes == {"fetch": 100, "compress": 100, "store": 7}


def test_a_child_names_no_stage_but_those_that_are_known():
    stages = Stages()
    stages.enter("compress")
    for told in ("verify", 'x"} 1\n', "store", "verify", "compress"):
        stages.told(told)
    stages.leave()
    assert set(stages.seconds) == {"compress", "verify"}


def test_the_rate_of_a_method_has_nothing_in_it_that_goes_by_samples(monkeypatch):
    stages, added = Stages(), []
    stages.input_bytes = 1 << 30
    monkeypatch.setattr("worker.stages.jobs.timed", lambda s, ident, timings: None)
    monkeypatch.setattr("worker.stages.meters.add", lambda s, name, count=1, total=0.0, **labels: added.append((name, count, total)))
    stages.seconds = {"fetch": 1.0, "calibrate": 50.0, "recover": 500.0, "compress": 2.0, "verify": 3.0, "measure": 60.0, "prove": 9.0, "store": 4.0}
    stages.bytes = dict.fromkeys(stages.seconds, 1)
    stages.record(None, Job(id="j", spec={"recipe": {"steps": [{"method": "prune"}]}}))
    assert [(count, total) for name, count, total in added if name == "work"] == [(1 << 30, 10.0)]
