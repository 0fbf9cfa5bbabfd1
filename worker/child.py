"""Runs one child to its end and says how it ended. What the child tells is a stranger's word: bounded, and taken only where it has the right form."""

from __future__ import annotations

import json
import logging
import math
import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from app import budget
from app.errors import REFUSALS, InputRefused, ModelpressError, OutOfMemory
from worker.zygote import Limits, Spawned, Zygote

log = logging.getLogger(__name__)
_LINE, _TOTAL = 64 << 10, 64 << 20
_POLL = 0.1
_FINAL = ("done", "failed")


@dataclass(frozen=True)
class Ended:
    """How a child ended: `done`, `failed` with a problem, `crashed` (why says how), `stopped` by us, or past its `deadline`. `memory`: its peak, bytes."""

    how: str
    problem: dict | None = None
    why: str = ""
    memory: int = 0


class Told:
    """Reads the child's JSON lines as they come."""

    def __init__(self, progress: Callable[[dict], None]):
        self.progress, self.buffer, self.total = progress, b"", 0
        self.final: dict | None = None
        self.traceback = ""

    def feed(self, data: bytes) -> None:
        """Raises:
        ValueError: a line or the whole is too long, or a line is no event.
        """
        self.total += len(data)
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        if self.total > _TOTAL or len(self.buffer) > _LINE or any(len(line) > _LINE for line in lines):
            raise ValueError("it tells too much")
        for line in lines:
            self._take(json.loads(line))

    def _take(self, event: dict) -> None:
        kind = event.get("event")
        if kind == "progress":
            self.progress(_progress(event))
        elif kind in _FINAL and self.final is None:
            self.final = event
        elif kind == "crash":
            self.traceback = "\n".join(_text(line, 300) for line in str(event.get("traceback")).splitlines()[-40:])


def _text(value, longest: int) -> str:
    """A stranger's text, for a document or a log: one line, short, and nothing in it but what can be seen."""
    return "".join(c if c.isprintable() else "\ufffd" for c in str(value)[:longest])


def _progress(event: dict) -> dict:
    fraction, counts = event["fraction"], {k: event[k] for k in ("bytes_done", "bytes_total")}
    if type(fraction) not in (int, float) or not math.isfinite(fraction):
        raise ValueError("progress is not a number")
    if any(type(n) is not int or not 0 <= n < 1 << 63 for n in counts.values()):
        raise ValueError("a count of bytes is none")
    return {"stage": _text(event["stage"], 32), "fraction": min(1.0, max(0.0, fraction))} | counts


def _problem(event: dict) -> dict:
    """The problem of a failed child, if it is one that we know; title and status are ours to say."""
    problem = event.get("problem")
    if not isinstance(problem, dict) or not isinstance(kind := problem.get("type"), str):
        raise ValueError("no problem")
    detail = _text(problem.get("detail"), 2000)
    known = {c.type: c for c in _tree(ModelpressError)}
    if kind in REFUSALS:
        made = InputRefused(kind, detail)
    elif kind in known:
        made = known[kind](detail)
    else:
        raise ValueError("an unknown problem")
    if isinstance(pointer := problem.get("pointer"), str):
        made.pointer = _text(pointer, 500)
    return made.problem() | {k: problem[k] for k in ("gates",) if k in problem} | _nearest(problem)


def _nearest(problem: dict) -> dict:
    """The bounds of a budget that could be met: numbers, by names that we know."""
    told = problem.get("nearest")
    if not isinstance(told, dict):
        return {}
    return {"nearest": {k: v for k, v in told.items() if k in (*budget.SIZE, *budget.QUALITY) and type(v) in (int, float) and math.isfinite(v)}}


def _tree(cls: type) -> list[type]:
    return [cls, *(d for c in cls.__subclasses__() for d in _tree(c))]


def run(
    zygote: Zygote, inp: Path, out: Path, spec: Path, limits: Limits, *, stop: Callable[[], bool], seconds: float, progress: Callable[[dict], None],
    read: Iterable[Path] = (),
) -> Ended:  # fmt: skip
    """Spawn a child and follow it until it has ended; it never outlives this call.

    Args:
        read: what it may read beside `inp`.
        stop: asked ten times a second; once it is true the child is killed.
        seconds: how long it may take.
    """
    deadline, before = time.monotonic() + seconds, _oom_kills()
    try:
        child = zygote.spawn(inp, out, spec, limits, read)
    except OSError as e:
        return Ended("crashed", why=f"its process could not be started: {e}")
    told, ended, status = Told(progress), None, None
    try:
        ended = _follow(zygote, child, told, limits, stop, deadline)
    except (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError) as e:
        ended = Ended("crashed", why=f"what it told was not understood: {_text(f'{type(e).__name__}: {e}', 200)}")
    finally:
        child.kill()
        status = zygote.wait()
        child.close()
    return replace(ended or _judge(told, status, _oom_kills() > before), memory=zygote.peak)


def _follow(zygote: Zygote, child: Spawned, told: Told, limits: Limits, stop: Callable[[], bool], deadline: float) -> Ended | None:
    """Read what it tells until its pipe is closed *and* the zygote has news of its end: one that closes the pipe and goes on is still followed."""
    watched = {child.pipe, zygote.socket.fileno()}
    while watched:
        if stop():
            return Ended("stopped")
        if time.monotonic() > deadline:
            return Ended("deadline")
        if limits.gpu and _anonymous(child.pid) > limits.memory:
            return Ended("failed", OutOfMemory(f"the job took more than {limits.memory} bytes of memory").problem())
        for fd in select.select(watched, [], [], _POLL)[0]:
            if fd == child.pipe and (data := os.read(fd, 1 << 16)):
                told.feed(data)
            else:
                watched.remove(fd)
    return None


def _anonymous(pid: int) -> int:
    """Bytes of memory of its own that a process has; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:")), 0)


def _oom_kills() -> int:
    """How many processes this kernel has killed because memory ran out."""
    return next((int(line.split()[1]) for line in Path("/proc/vmstat").read_text().splitlines() if line.startswith("oom_kill ")), 0)


def _judge(told: Told, status: int | None, memory_ran_out: bool) -> Ended:
    code = None if status is None else os.waitstatus_to_exitcode(status)
    if code == 0 and told.final is not None:
        try:
            return Ended("done") if told.final["event"] == "done" else Ended("failed", _problem(told.final))
        except (ValueError, TypeError) as e:
            return Ended("crashed", why=f"it ended with {e}")
    if code == -signal.SIGXCPU:
        return Ended("deadline")
    if code == -signal.SIGKILL and memory_ran_out:
        return Ended("failed", OutOfMemory("the job took more memory than the machine has").problem())
    if told.traceback:
        log.error("the child ended with an error of its own:\n%s", told.traceback)
    how = "with its zygote" if code is None else f"with code {code}"
    return Ended("crashed", why=f"its process ended {how}" + (f": {told.traceback.strip().splitlines()[-1][:300]}" if told.traceback.strip() else ""))
