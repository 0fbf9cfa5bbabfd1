"""Waiting for jobs: however many requests wait, one task per process asks the database, and none of them holds a session meanwhile."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.concurrency import run_in_threadpool
from sqlalchemy import select
from sse_starlette.sse import AppStatus

from app import events
from app.db import reading
from app.models import TERMINAL, Job, JobEvent

PERIOD, SHORTEST = 0.2, 0.02  # seconds between two looks
_LATE = 0.1  # of the time that somebody has waited: the end of a job is seen so much later at most, or a period later
_FEW = 8  # jobs that are looked at more often than once a period
_CHUNK = 500  # ids in one query
log = logging.getLogger(__name__)


def look(ids: list[str]) -> dict[str, tuple[str, int]]:
    """State and newest event of these jobs; those that are gone are left out."""
    query = select(Job.id, Job.state, Job.last_event)
    with reading() as s:
        return {i: (state, last) for at in range(0, len(ids), _CHUNK) for i, state, last in s.execute(query.where(Job.id.in_(ids[at : at + _CHUNK])))}


@dataclass(eq=False)
class _Waiter:
    """`until(state, last_event)` says whether it is to be woken; a job that is gone wakes everybody."""

    until: Callable[[str, int], bool]
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    since: float = 0.0  # on the monotonic clock


class Watcher:
    """The task lives as long as somebody waits."""

    def __init__(self):
        self._waiting: dict[str, set[_Waiter]] = {}
        self._task: asyncio.Task | None = None
        self._reading: dict[tuple[str, int], asyncio.Task] = {}

    async def wait(self, job_id: str, seconds: float) -> None:
        """Returns once the job has ended, the time is up, or the server stops."""
        try:
            async with asyncio.timeout(seconds):
                await self._until(job_id, lambda state, _: state in TERMINAL or AppStatus.should_exit, time.monotonic())
        except TimeoutError:
            pass

    async def events(self, job_id: str, seq: int, stopping: Callable[[], bool]) -> tuple[list[JobEvent], bool]:
        """See `events.after`; while there are none it waits for them, or until it is `stopping`."""
        rows, ended = await self._read(job_id, seq)
        if rows or ended:
            return rows, ended
        await self._until(job_id, lambda state, last: last > seq or state in TERMINAL or stopping())
        return await self._read(job_id, seq)

    async def _read(self, job_id: str, seq: int) -> tuple[list[JobEvent], bool]:
        """Those who ask for the same at once share one query."""
        if (key := (job_id, seq)) not in self._reading:
            self._reading[key] = asyncio.create_task(run_in_threadpool(events.after, job_id, seq))
            self._reading[key].add_done_callback(lambda _: self._reading.pop(key))
        return await asyncio.shield(self._reading[key])

    async def _until(self, job_id: str, until: Callable[[str, int], bool], since: float = 0.0) -> None:
        waiter = _Waiter(until, since=since)
        self._waiting.setdefault(job_id, set()).add(waiter)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch())
        try:
            await waiter.woken.wait()
        finally:
            self._waiting[job_id].discard(waiter)
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    async def _watch(self) -> None:
        while self._waiting:
            try:
                found = await run_in_threadpool(look, list(asked := set(self._waiting)))
                for job_id in asked & self._waiting.keys():
                    for waiter in self._waiting[job_id]:
                        if job_id not in found or waiter.until(*found[job_id]):
                            waiter.woken.set()
            except Exception:
                log.exception("the database does not answer; waiters go on waiting")
            await asyncio.sleep(self._pause())

    def _pause(self) -> float:
        """Short while few wait and one of them has just come: a small job takes a quarter of a second in all."""
        newest = max((w.since for waiters in self._waiting.values() for w in waiters), default=0.0)
        return min(PERIOD, max(SHORTEST, _LATE * (time.monotonic() - newest))) if len(self._waiting) <= _FEW else PERIOD
