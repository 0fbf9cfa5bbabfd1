"""What to do while the store is away: wait, longer each time, and look in between whether to stop."""

from __future__ import annotations

import time
from collections.abc import Callable

FIRST, MOST = 1.0, 30.0  # seconds
_LOOK = 0.1


class Pause:
    """Args: stopping: whether the process is to stop; it ends a wait."""

    def __init__(self, stopping: Callable[[], bool]):
        self.stopping, self.next = stopping, FIRST

    def over(self) -> None:
        """It went well: the next wait is a short one again."""
        self.next = FIRST

    def wait(self) -> None:
        end = time.monotonic() + self.next
        self.next = min(2 * self.next, MOST)
        while not self.stopping() and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _LOOK))
