"""How a child may end, and what it may say. It is a stranger: none of it may hang the worker, outlive the call, or get further than it should."""

from __future__ import annotations

import json
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from worker import child
from worker.child import Told
from worker.zygote import Limits

PROGRESS = {"event": "progress", "stage": "x", "fraction": 0.5, "bytes_done": 1, "bytes_total": 2}
FAILED = {"event": "failed", "problem": {"type": "invalid-safetensors", "title": "x", "status": 200, "detail": "why"}}


def children(entries) -> list[psutil.Process]:
    return psutil.Process(entries.process.pid).children()


@pytest.mark.parametrize("entry, said", [("silent", "code 0"), ("segfault", "code -11"), ("raising", "LookupError: a bug")])
def test_an_end_without_a_result_is_a_crash(follow, entries, entry, said):
    ended, _ = follow(entry)
    assert ended.how == "crashed" and said in ended.why
    assert not children(entries)


@pytest.mark.parametrize("entry", ["endless", "deaf"])
def test_deadline_and_stop_reach_a_child_that_says_nothing(follow, entries, entry):
    start = time.monotonic()
    assert follow(entry, seconds=1.0)[0].how == "deadline"
    asked = time.monotonic() + 0.5
    assert follow(entry, stop=lambda: time.monotonic() > asked)[0].how == "stopped"
    assert time.monotonic() - start < 5
    assert not children(entries)


@pytest.mark.parametrize(
    "line",
    [
        "no json\n", "[]\n", "3\n", "null\n", "[" * 5000 + "\n", "x" * 70_000 + "\n", "x" * 70_000, '{"event": "progress"}\n',
        *(json.dumps(PROGRESS | bad) + "\n" for bad in ({"fraction": "1"}, {"fraction": None}, {"bytes_done": -1}, {"bytes_done": 1.5})),
        json.dumps(PROGRESS | {"bytes_total": 1 << 64}) + "\n",
        *(json.dumps(PROGRESS).replace("0.5", text) + "\n" for text in ("NaN", "Infinity", "1e999", "9" * 5000)),
        json.dumps(PROGRESS).replace(": 1,", ": 1e999,") + "\n", b"\xff\xfe\n".decode("latin-1"),
    ],
)  # fmt: skip
def test_a_child_that_talks_nonsense_is_killed(follow, entries, line):
    start = time.monotonic()
    ended, told = follow("raw", line=line, stay=True)
    assert ended.how == "crashed" and "not understood" in ended.why and told == []
    assert time.monotonic() - start < 5 and not children(entries)


def test_a_child_that_talks_without_end_is_killed(follow, entries):
    ended, _ = follow("raw", line=json.dumps({"event": "weather", "report": "x" * 60_000}) + "\n", times=1200, stay=True)
    assert ended.how == "crashed" and "tells too much" in ended.why and not children(entries)


def test_unknown_events_and_keys_are_passed_over(follow):
    events = [{"event": "weather"}, PROGRESS | {"more": 1, "stage": "a\x1b[2Jb" + "c" * 90}, {"event": "done"}]
    ended, told = follow("raw", line="".join(json.dumps(e) + "\n" for e in events))
    assert ended.how == "done"
    assert told == [{"stage": "a\ufffd[2Jb" + "c" * 26, "fraction": 0.5, "bytes_done": 1, "bytes_total": 2}]


def test_a_problem_is_ours_to_word(follow):
    problem = FAILED["problem"] | {"detail": "a\x00b" * 2000} | {"pointer": "/recipe", "instance": "evil", "stack": "evil", "gates": {"max_bytes": 1}, "nearest": {"ratio": 3.5, "max_kl": "evil", "evil": 1}}
    ended, _ = follow("raw", line=json.dumps({"event": "failed", "problem": problem}) + "\n")
    assert ended.how == "failed"
    assert (ended.problem["status"], ended.problem["title"], ended.problem["pointer"]) == (422, "Not a valid safetensors file", "/recipe")
    assert len(ended.problem["detail"]) == 2000 and "\x00" not in ended.problem["detail"]
    assert set(ended.problem) == {"type", "title", "status", "detail", "pointer", "gates", "nearest"} and ended.problem["nearest"] == {"ratio": 3.5}


@pytest.mark.parametrize("problem", [None, {}, {"type": "made-up"}, {"type": ["x"]}, {"type": None}, "text"])
def test_an_unknown_problem_is_a_crash(follow, problem):
    ended, _ = follow("raw", line=json.dumps({"event": "failed", "problem": problem}) + "\n")
    assert ended.how == "crashed"


@pytest.mark.parametrize("entry", ["torch_memory", "mapped_memory", "python_memory"])
def test_the_end_of_memory_is_no_crash(follow, entry):
    ended, _ = follow(entry, bytes=600 << 20, limits=Limits(512 << 20, 1 << 20, 1))
    assert ended.how == "failed" and ended.problem["type"] == "out-of-memory", ended
    assert follow(entry, bytes=100 << 20, limits=Limits(512 << 20, 1 << 20, 1))[0].how == "done"


def test_the_end_of_the_disk_is_no_crash(follow, rooms):
    ended, _ = follow("large_file")
    assert ended.how == "failed" and ended.problem["type"] == "no-space"
    assert (rooms[1] / "large").stat().st_size <= 1 << 20


def test_its_peak_is_told_by_the_kernel(follow):
    least, _ = follow("held_memory", bytes=1)
    more, _ = follow("held_memory", bytes=300 << 20)
    assert (least.how, more.how) == ("done", "done") and least.memory > 10 << 20
    assert 280 << 20 < more.memory - least.memory < 340 << 20
    assert follow("held_memory", bytes=1)[0].memory < least.memory + (50 << 20)  # each child's own


def test_a_kill_by_the_kernel_for_memory_is_no_crash():
    """The same signal is a crash when nobody ran out of memory."""
    assert child._judge(Told(print), 9, memory_ran_out=True).problem["type"] == "out-of-memory"
    assert child._judge(Told(print), 9, memory_ran_out=False).how == "crashed"
    counted = child._oom_kills()
    line = next(x for x in Path("/proc/vmstat").read_text().splitlines() if x.startswith("oom_kill "))
    assert counted == int(line.split()[1])


KEYS = st.sampled_from(["event", "stage", "fraction", "bytes_done", "bytes_total", "problem", "type", "traceback"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=8),
    max_leaves=12,
)
EVENTS = VALUES | st.builds(lambda more: PROGRESS | more, st.dictionaries(st.sampled_from(list(PROGRESS)), VALUES, max_size=2))


@examples(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(EVENTS, max_size=6), st.integers(1, 40))
def test_whatever_is_told_is_taken_in_bounds_or_refused(events, size):
    """In pieces of any size, as a pipe gives them."""
    taken: list[dict] = []
    told = Told(taken.append)
    data = b"".join(json.dumps(e).encode() + b"\n" for e in events)
    try:
        for at in range(0, len(data), size):
            told.feed(data[at : at + size])
    except (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError):
        pass  # what `run` takes for a crash
    for p in taken:
        assert set(p) == {"stage", "fraction", "bytes_done", "bytes_total"}
        assert 0 <= p["fraction"] <= 1 and 0 <= p["bytes_done"] < 1 << 63 and 0 <= p["bytes_total"] < 1 << 63
        assert len(p["stage"]) <= 32 and p["stage"].isprintable()
