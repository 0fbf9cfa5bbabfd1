"""The fuzz targets on what each begins with and on the kept corpus: typed errors or nothing. `make fuzz` goes on from there."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.errors import REFUSALS
from fuzz import native, seeds, targets

KEPT = Path(__file__).parent / "fuzz_corpus"


@pytest.mark.parametrize("target", targets.TARGETS)
def test_kept_inputs_end_in_typed_errors(target, tmp_path):
    seeds.write(target, tmp_path)
    found = {p.name: targets.run(target, p.read_bytes()) for folder in (tmp_path, KEPT / target) if folder.exists() for p in sorted(folder.iterdir())}
    assert {how for how in found.values() if how} <= REFUSALS.keys() | {"CorruptPayload", "Damaged", "LocalProtocolError", "RemoteProtocolError", "malformed-json"}
    assert not found or found.get("made-0", "") == ""  # a good one, where it begins with any


def test_a_finding_is_not_swallowed(monkeypatch):
    monkeypatch.setitem(targets.TARGETS, "npy", lambda data: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        targets.run("npy", b"")


def test_figures_of_libfuzzer_are_read():
    said = "#2\tINITED cov: 3 ft: 3 corp: 1/1b\n#4096\tNEW    cov: 120 ft: 300 corp: 17/2b exec/s: 9\n#9000\tDONE   cov: 130 ft: 310 corp: 18/2b\nDone 9000 runs in 31 second(s)\n"
    assert native.libfuzzer(said) == {"executions": 9000, "edges": 130, "inputs": 18, "seconds": 31.0}
