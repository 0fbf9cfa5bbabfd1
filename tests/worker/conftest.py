"""Zygotes that run the small entries of `tests/worker/entries.py` in the real jail."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from worker import child, zygote
from worker.zygote import Limits, Zygote

HERE = str(Path(__file__).parent)
LIMITS = Limits(memory=1 << 30, file_bytes=1 << 20, threads=2)


class Entries(Zygote):
    """A zygote that finds the tests' entries, which `-I` keeps off the path."""

    program = ("-c", f"import sys; sys.path.insert(0, {HERE!r}); from worker.zygote import main; a = sys.argv; main(int(a[1]), int(a[2]), *a[3:])")


@pytest.fixture(scope="session")
def entries() -> Iterator[Zygote]:
    """One zygote for all entries; a test sets its `entry`."""
    zygote.PRELOAD["entries"] = ("torch", "worker.__main__", "entries")
    made = Entries("entries")
    yield made
    made.close()


@pytest.fixture
def rooms(tmp_path) -> tuple[Path, Path, Path]:
    """`in` with one file, an empty `out`, and a spec."""
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "in" / "given").write_bytes(b"given")
    (tmp_path / "spec.json").write_text(json.dumps({"seed": 3}))
    return tmp_path / "in", tmp_path / "out", tmp_path / "spec.json"


@pytest.fixture
def follow(entries, rooms) -> Callable:
    """Runs an entry of `entries.py` to its end: `follow(name, seconds=.., stop=.., limits=..)` -> (Ended, what it told as progress)."""

    def following(name: str, seconds: float = 90, stop: Callable[[], bool] = lambda: False, limits: Limits = LIMITS, **spec):
        rooms[2].write_text(json.dumps(spec))
        entries.entry, told = f"entries:{name}", []
        zygote.PRELOAD[entries.entry] = zygote.PRELOAD["entries"]
        return child.run(entries, *rooms, limits, stop=stop, seconds=seconds, progress=told.append), told

    return following


@pytest.fixture(scope="session")
def zygotes():
    """Those of a worker, kept between its jobs: what they import takes seconds."""
    made: dict[tuple[str, ...], Zygote] = {}
    yield made
    for zygote in made.values():
        zygote.close()
