"""How long each stage of an attempt took, and on how many bytes: fetch, calibrate, search, recover or reconstruct, compress (or restore), verify, measure,
prove, store."""

from __future__ import annotations

import time

from sqlalchemy.orm import Session

from app import jobs, meters
from app.models import Job

OF_THE_CHILD = frozenset({"calibrate", "search", "recover", "reconstruct", "compress", "verify", "restore", "measure", "prove"})
"""What a child may say that it does; before its first word it is at the stage that it was started for."""
RUNNING = frozenset({"calibrate", "search", "recover", "reconstruct", "measure", "prove"})
"""What goes by samples and steps, or is mostly an import, and not by bytes: no rate of a method has it in it."""


class Stages:
    """One stage at a time; `enter` ends the one before. `input_bytes` is set once the input is known."""

    def __init__(self):
        self.input_bytes = 0
        self.memory = 0  # bytes that the largest child had resident
        self.seconds: dict[str, float] = {}
        self.bytes: dict[str, int] = {}
        self._now: str | None = None
        self._since = 0.0

    def enter(self, stage: str, nbytes: int | None = None) -> None:
        """Args: nbytes: what it works on; default: the input."""
        self.leave()
        self._now, self._since = stage, time.monotonic()
        self.bytes[stage] = self.input_bytes if nbytes is None else nbytes

    def told(self, stage: str) -> None:
        """A child's word, of which nothing is taken but the name of a stage that we know."""
        if stage in OF_THE_CHILD and stage != self._now:
            self.enter(stage)

    def leave(self) -> None:
        if self._now is not None:
            self.seconds[self._now] = self.seconds.get(self._now, 0.0) + time.monotonic() - self._since
            self._now = None

    def rounded(self) -> dict[str, float]:
        """Seconds by stage, so far."""
        return {stage: round(seconds, 3) for stage, seconds in self.seconds.items()}

    def record(self, s: Session, job: Job) -> None:
        """Into the job's timings and the meters, in the transaction that ends the attempt."""
        self.leave()
        of = {"method": meters.method(job.spec["recipe"]), "device": job.device or "cpu"}
        jobs.timed(s, job.id, self.rounded())
        for stage, seconds in self.seconds.items():
            meters.add(s, "stage_seconds", total=seconds, stage=stage, **of)
            meters.add(s, "stage_bytes", count=self.bytes[stage], stage=stage, **of)
        if self.input_bytes >= meters.LARGE and "store" in self.seconds:
            took = sum(seconds for stage, seconds in self.seconds.items() if stage not in RUNNING)
            meters.add(s, "work", count=self.input_bytes, total=took, **of)
