"""How far a job is, told to the worker process as events, at most five times a second."""

from __future__ import annotations

import time
from collections.abc import Callable

Emit = Callable[[dict], None]
_INTERVAL = 0.2  # seconds


class Progress:
    """Counts the bytes of one stage (`compress`, `verify`, `restore`, `prove`).

    Args:
        cost: of the whole stage, where bytes differ in the time that they take; then every `add` names its share. Default: the bytes.
    """

    def __init__(self, emit: Emit, stage: str, total: int, cost: float | None = None):
        self.emit, self.stage, self.total, self.cost = emit, stage, max(total, 1), cost or max(total, 1)
        self.done, self.spent, self.last = 0, 0.0, 0.0
        self.add(0)

    def add(self, nbytes: int, cost: float | None = None) -> None:
        self.done += nbytes
        self.spent += nbytes if cost is None else cost
        if (now := time.monotonic()) - self.last >= _INTERVAL:
            self.last = now
            fraction = min(1.0, self.spent / self.cost)
            self.emit({"event": "progress", "stage": self.stage, "fraction": fraction, "bytes_done": self.done, "bytes_total": self.total})
