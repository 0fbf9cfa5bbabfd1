"""The zygote: what it is before it forks, what its children are given, and how everything dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from worker import zygote
from worker.zygote import Limits, serving

WORKER = """
import json, sys, time
from pathlib import Path
from worker.zygote import Limits, Zygote
sys.path.insert(0, {here!r})
from conftest import Entries
from worker import zygote as z
z.PRELOAD["entries:endless"] = ("torch", "entries")
zy = Entries("entries:endless")
child = zy.spawn(Path({inp!r}), Path({out!r}), Path({spec!r}), Limits(1 << 30, 1 << 20, 1))
print(zy.process.pid, child.pid, flush=True)
time.sleep(600)
"""


def status(pid: int) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)


def gone(pid: int, seconds: float = 5) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("entry", {imported: entry for entry, imported in sorted(zygote.PRELOAD.items())}.values())  # one of those that import the same
def test_a_zygote_that_is_ready_has_one_thread_and_no_secrets(entry, zygotes, rooms):
    """Parallel work in it, even of an import, would make its children hang; of this process's environment it has nothing."""
    if ":" not in entry or entry.startswith("entries"):
        pytest.skip("an entry of these tests")
    made = serving(zygotes, entry)
    child = made.spawn(*rooms, Limits(1 << 30, 1 << 20, 1))  # it has imported all that it imports once it answers
    child.kill()
    made.wait()
    child.close()
    assert len(os.listdir(f"/proc/{made.process.pid}/task")) == 1
    environment = Path(f"/proc/{made.process.pid}/environ").read_bytes()
    names = {v.split(b"=")[0].decode() for v in environment.split(b"\0") if v} - {"CUDA_VISIBLE_DEVICES"}
    assert names == {*zygote._ENVIRONMENT, "CUDA_CACHE_DISABLE"} and "HOME" in os.environ


def test_a_child_reads_its_input_and_writes_its_output(follow, rooms):
    ended, told = follow("good", seed=3)
    assert ended.how == "done" and told[0]["stage"] == "3"
    assert (rooms[1] / "copy").read_bytes() == b"given"


def test_a_child_is_given_three_descriptors_and_its_pipe(follow, entries, rooms):
    with open(os.devnull), open(os.devnull):  # what is open here must not be open there
        ended, told = follow("about")
    assert ended.how == "done" and told[0]["stage"].split()[:2] == ["fds", "4"]


def test_a_child_is_its_own_session_and_the_first_to_go_when_memory_ends(entries, rooms):
    entries.entry = "entries:endless"
    zygote.PRELOAD[entries.entry] = zygote.PRELOAD["entries"]
    child = entries.spawn(*rooms, Limits(1 << 30, 1 << 20, 1))
    try:
        end = time.monotonic() + 10
        while status(child.pid)["Seccomp"] != "2":
            assert time.monotonic() < end
            time.sleep(0.01)
        assert os.getsid(child.pid) == child.pid
        assert Path(f"/proc/{child.pid}/oom_score_adj").read_text().strip() == "1000"
        assert status(child.pid)["NoNewPrivs"] == "1"
    finally:
        child.kill()
        assert os.waitstatus_to_exitcode(entries.wait()) == -signal.SIGKILL
        child.close()


def test_a_zygote_that_was_killed_is_replaced_and_its_child_dies_with_it(entries, rooms, follow):
    entries.entry = "entries:endless"
    zygote.PRELOAD[entries.entry] = zygote.PRELOAD["entries"]
    child = entries.spawn(*rooms, Limits(1 << 30, 1 << 20, 1))
    first = entries.process.pid
    os.kill(first, signal.SIGKILL)
    assert gone(child.pid)
    assert entries.wait() is None
    child.kill()  # a handle of what has ended is no danger to anybody
    child.close()
    assert follow("good", seed=3)[0].how == "done"
    assert entries.process.pid != first


def test_zygote_and_child_die_with_the_worker(rooms):
    inp, out, spec = map(str, rooms)
    code = WORKER.format(here=str(Path(__file__).parent), inp=inp, out=out, spec=spec)
    worker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        made = [int(pid) for pid in worker.stdout.readline().split()]
        assert len(made) == 2 and all(psutil.pid_exists(pid) for pid in made)
        worker.kill()
        worker.wait()
        assert all(gone(pid) for pid in made)
    finally:
        worker.kill()
        worker.wait()
        worker.stdout.close()
