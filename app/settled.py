"""Transactions that come to a known end although the database goes away in their middle.

When a connection breaks before the answer to COMMIT has come, nobody knows whether it was carried out. Then it is looked up, by the job's own id, fence
and state: never guessed, and never done twice.

    settled(lambda s: jobs.handoff(s, job.id, job.fence, document), lambda s: jobs.handed_over(s, job.id, prefix))
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from app.db import reading, session
from app.errors import Unavailable

log = logging.getLogger(__name__)
T = TypeVar("T")
_STATES = {"25006", "25P03"}  # of PostgreSQL, beside its operational errors: a read-only server; a transaction ended because it was idle for too long
_NO_TABLE = "42P01"
_PAUSE = 0.05, 1.0  # seconds between the tries, at first and at most


def away(error: BaseException) -> bool:
    """Whether the database is at fault and not the statement: gone, restarting, full, read-only, out of connections; or it gave up this transaction for
    another one (a deadlock). The same may succeed a little later."""
    if isinstance(error, OperationalError | InterfaceError | PoolTimeout):
        return True
    return isinstance(error, DBAPIError) and (error.connection_invalidated or getattr(error.orig, "sqlstate", None) in _STATES)


@contextmanager
def reachable() -> Iterator[None]:
    """For commands. Raises:
    Unavailable: the database is away.
    """
    try:
        yield
    except (DBAPIError, PoolTimeout) as e:
        if getattr(getattr(e, "orig", None), "sqlstate", None) == _NO_TABLE or "no such table" in str(e):
            raise Unavailable("the database has no tables yet; `modelpress db upgrade` makes them") from None
        if not away(e):
            raise
        raise Unavailable(f"the database does not answer: {str(getattr(e, 'orig', e)).splitlines()[0]}") from None


def settled(work: Callable[[Session], T], holds: Callable[[Session], T | None] | None = None, seconds: float = 2.0) -> T:
    """Run `work` in a transaction of its own, and again after the database was away.

    Args:
        work: such that a second run finds nothing to do where the first took effect: an update `WHERE fence = :f` matches no row, a row with its id
            is there.
        holds: what `work` would have returned if it took effect, else None. Asked on a new connection once an answer was lost. Not needed where what a
            second run returns is as good.
        seconds: for how long it is tried.

    Raises:
        sqlalchemy.exc.DBAPIError, TimeoutError: the database is still away; whether `work` took effect is not known. And what `work` raises.
    """
    end, pause, doubt = time.monotonic() + seconds, _PAUSE[0], False
    while True:
        try:
            if doubt and holds and (found := _ask(holds)) is not None:
                return found
            with session() as s, s.begin():
                done = work(s)
            if done or not doubt or not holds:
                return done
            found = _ask(holds)  # the second run has waited for the first one's locks: by now the answer is the last word
            return done if found is None else found
        except (DBAPIError, PoolTimeout) as e:
            collided = doubt and isinstance(e, IntegrityError)  # with what the first run has made, or is still making
            if not (collided or away(e)) or time.monotonic() + pause > end:
                raise
            log.warning("the database is away, trying again: %s", e)
            doubt = True
        time.sleep(pause)
        pause = min(2 * pause, _PAUSE[1])


def _ask(holds: Callable[[Session], T | None]) -> T | None:
    with reading() as s:
        return holds(s)
