"""The clock of an attempt's stages, and what it takes from a child."""

from __future__ import annotations

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
