"""Checks of the service and of the machine: each says in a sentence what is there, or what is wrong and what to do about it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

OK, WARN, FAIL = LEVELS = ("ok", "warn", "fail")
Check = Callable[[], str]
log = logging.getLogger(__name__)


class Trouble(Exception):
    """Raised by a check. Args: detail: what is wrong, and what to do. level: `warn` where work goes on all the same."""

    def __init__(self, detail: str, level: str = FAIL):
        super().__init__(detail)
        self.detail, self.level = detail, level


class Finding(NamedTuple):
    name: str
    level: str
    detail: str


def find(name: str, check: Check, frank: bool = False) -> Finding:
    """Carry out one check. `frank`: whether whoever reads it may see the words of an error that nobody expected."""
    try:
        return Finding(name, OK, check())
    except Trouble as e:
        return Finding(name, e.level, e.detail)
    except Exception as e:  # whatever it is, it is the answer
        log.info("%s: %s: %s", name, type(e).__name__, e)
        said = f": {str(e).strip().splitlines()[0][:300]}" if frank and str(e).strip() else ""
        return Finding(name, FAIL, f"{type(e).__name__}{said}")


class Watch:
    """Checks side by side. One that hangs is said to hang, and is not begun again before it has come back.

    Args:
        seconds: how long any of them may take.
    """

    def __init__(self, checks: dict[str, Check], seconds: float = 2.0, frank: bool = False):
        self.checks, self.seconds, self.frank = checks, seconds, frank
        self._lock, self._found, self._running = threading.Lock(), {}, {}

    def look(self) -> list[Finding]:
        """In the order of the checks, within `seconds`."""
        end = time.monotonic() + self.seconds
        with self._lock:
            for name, check in self.checks.items():
                if name not in self._running:
                    self._running[name] = threading.Thread(target=self._run, args=(name, check), name=f"check-{name}", daemon=True)
                    self._running[name].start()
            running = dict(self._running)
        for thread in running.values():
            thread.join(max(0.0, end - time.monotonic()))
        late = f"no answer within {self.seconds:g} seconds"
        return [Finding(name, FAIL, late) if running[name].is_alive() else self._found[name] for name in self.checks]

    def _run(self, name: str, check: Check) -> None:
        self._found[name] = find(name, check, self.frank)
        with self._lock:
            del self._running[name]
