"""Runs one child to its end and says how it ended. What the child tells is a stranger's word: bounded, and taken only where it has the right form."""

from __future__ import annotations

import json
import logging
import math
import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from app.errors import REFUSALS, ModelpressError
from worker.zygote import Limits, Zygote

log = logging.getLogger(__name__)
_LINE, _TOTAL = 64 << 10, 64 << 20
_POLL = 0.1
_FINAL = ("done", "failed")


@dataclass(frozen=True)
class Ended:
    """How a child ended: `done`, `failed` with a problem, `crashed` (why says how), `stopped` by us, or past its `deadline`."""

    how: str
    problem: dict | None = None
    why: str = ""


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
            self.traceback = str(event.get("traceback"))[-4000:]


def _progress(event: dict) -> dict:
    fraction, done, total = float(event["fraction"]), int(event["bytes_done"]), int(event["bytes_total"])
    if not math.isfinite(fraction):
        raise ValueError("progress is not a number")
    return {"stage": str(event["stage"])[:32], "fraction": min(1.0, max(0.0, fraction)), "bytes_done": done, "bytes_total": total}


def _problem(event: dict) -> dict:
    """The problem of a failed child, if it is one that we know."""
    problem = event.get("problem")
    known = {c.type: c for c in _tree(ModelpressError)}
    if not isinstance(problem, dict) or problem.get("type") not in known.keys() | REFUSALS.keys():
        raise ValueError("an unknown problem")
    kept = {k: problem[k] for k in ("type", "title", "status", "detail", "pointer", "gates") if k in problem}
    return kept | {"detail": str(kept.get("detail"))[:2000], "title": str(kept.get("title"))[:200], "status": int(kept.get("status", 500))}


def _tree(cls: type) -> list[type]:
    return [cls, *(d for c in cls.__subclasses__() for d in _tree(c))]


def run(zygote: Zygote, inp: Path, out: Path, spec: Path, limits: Limits, *, stop: Callable[[], bool], seconds: float, progress: Callable[[dict], None]) -> Ended:
    """Spawn a child and follow it.

    Args:
        stop: asked ten times a second; once it is true the child's process group is killed.
        seconds: how long it may take.
    """
    deadline = time.monotonic() + seconds
    try:
        pid, pipe = zygote.spawn(inp, out, spec, limits)
    except OSError as e:
        return Ended("crashed", why=f"its process could not be started: {e}")
    told, ended = Told(progress), None
    try:
        while ended is None:
            if stop():
                ended = Ended("stopped")
            elif time.monotonic() > deadline:
                ended = Ended("deadline")
            elif select.select([pipe], [], [], _POLL)[0]:
                if not (data := os.read(pipe, 1 << 16)):
                    break
                told.feed(data)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        ended = Ended("crashed", why=f"what it told was not understood: {type(e).__name__}: {e}")
    finally:
        os.close(pipe)
        if ended is not None:
            _kill(pid)
    status = zygote.wait()
    return ended or _judge(told, status)


def _kill(pid: int) -> None:
    for kill in (os.killpg, os.kill):  # before it has its own session, it has no group to kill
        try:
            kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def _judge(told: Told, status: int | None) -> Ended:
    if status is not None and os.waitstatus_to_exitcode(status) == 0 and told.final is not None:
        try:
            return Ended("done") if told.final["event"] == "done" else Ended("failed", _problem(told.final))
        except (ValueError, TypeError) as e:
            return Ended("crashed", why=f"it ended with {e}")
    if told.traceback:
        log.error("the child ended with an error of its own:\n%s", told.traceback)
    how = "with its zygote" if status is None else f"with code {os.waitstatus_to_exitcode(status)}"
    return Ended("crashed", why=f"its process ended {how}" + (f": {told.traceback.strip().splitlines()[-1][:300]}" if told.traceback else ""))
