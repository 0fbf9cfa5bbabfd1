"""Waiting for jobs: however many requests wait, one task per process asks the database, and none of them holds a session meanwhile."""

from __future__ import annotations

import asyncio
import logging

from fastapi.concurrency import run_in_threadpool
from sqlalchemy import select

from app.db import session
from app.models import TERMINAL, Job

PERIOD = 0.2  # seconds
_CHUNK = 500  # ids in one query
log = logging.getLogger(__name__)


def ended(ids: list[str]) -> set[str]:
    """Which of these jobs have reached a terminal state (or are gone)."""
    with session() as s:
        known = {i: state for at in range(0, len(ids), _CHUNK) for i, state in s.execute(select(Job.id, Job.state).where(Job.id.in_(ids[at : at + _CHUNK])))}
    return {i for i in ids if known.get(i) is None or known[i] in TERMINAL}


class Watcher:
    """`wait` returns once the job has ended or the time is up; the task lives as long as somebody waits."""

    def __init__(self):
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._task: asyncio.Task | None = None

    async def wait(self, job_id: str, seconds: float) -> None:
        event = asyncio.Event()
        self._waiting.setdefault(job_id, set()).add(event)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch())
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            pass
        finally:
            self._waiting[job_id].discard(event)
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    async def _watch(self) -> None:
        while self._waiting:
            try:
                for job_id in await run_in_threadpool(ended, list(self._waiting)):
                    for event in self._waiting.get(job_id, ()):
                        event.set()
            except Exception:
                log.exception("the database does not answer; waiters go on waiting")
            await asyncio.sleep(PERIOD)
