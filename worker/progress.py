"""How far a job is, told to the worker process as events, at most five times a second."""

from __future__ import annotations

import time
from collections.abc import Callable

Emit = Callable[[dict], None]
_INTERVAL = 0.2  # seconds


class Progress:
    """Counts the bytes of one stage (`compress`, `verify`, `restore`, `prove`)."""

    def __init__(self, emit: Emit, stage: str, total: int):
        self.emit, self.stage, self.total = emit, stage, max(total, 1)
        self.done, self.last = 0, 0.0
        self.add(0)

    def add(self, nbytes: int) -> None:
        self.done += nbytes
        if (now := time.monotonic()) - self.last >= _INTERVAL:
            self.last = now
            fraction = min(1.0, self.done / self.total)
            self.emit({"event": "progress", "stage": self.stage, "fraction": fraction, "bytes_done": self.done, "bytes_total": self.total})
