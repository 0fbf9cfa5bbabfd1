"""When each API key was last used: noted in memory, written once a minute for all keys together, so that no request pays for it."""

from __future__ import annotations

import atexit
import logging
import threading
import time

from app import api_keys
from app.db import session

log = logging.getLogger(__name__)
EVERY = 60.0  # seconds
_noted: dict[str, float] = {}  # key's id -> time of the last use, on the monotonic clock
_lock = threading.Lock()
_writing: threading.Thread | None = None


def note(ident: str) -> None:
    global _writing
    with _lock:
        _noted[ident] = time.monotonic()
        if _writing is None or not _writing.is_alive():
            _writing = threading.Thread(target=_write_by_and_by, name="last-use", daemon=True)
            _writing.start()
            atexit.register(write)


def _write_by_and_by() -> None:
    while True:
        time.sleep(EVERY)
        write()


def write() -> None:
    """Write what was noted. What the database does not take now is lost: the next use notes it again."""
    with _lock:
        noted = dict(_noted)
        _noted.clear()
    if not noted:
        return
    at = time.monotonic()
    try:
        with session() as s, s.begin():
            api_keys.used(s, {ident: at - used for ident, used in noted.items()})
    except Exception as e:  # whatever the database raises
        log.warning("the last use of %d API keys was not written: %s", len(noted), e)
