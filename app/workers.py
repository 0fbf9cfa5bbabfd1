"""The registry of worker processes: what each takes, what it has, whether its jail holds, and when it was last seen.

A worker puts its row in at the start, is seen with every heartbeat, also while it works, and takes its row away at the end. One that dies leaves it
behind: it counts as live for three heartbeats more, and the sweep removes it later.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from app.config import settings
from app.db import now
from app.models import Worker

_LIVE = 3  # heartbeats
_KEPT = 20  # leases
_APART = {"synchronize_session": False}


def register(s: Session, worker: Worker) -> None:
    """Put its row in, or bring the one that is there up to date."""
    s.merge(worker)


def seen(s: Session, ident: str) -> bool:
    """False: it has no row (any more), and should register."""
    return s.execute(update(Worker).where(Worker.id == ident).values(seen_at=now()), execution_options=_APART).rowcount == 1


def leave(s: Session, ident: str) -> None:
    s.execute(delete(Worker).where(Worker.id == ident), execution_options=_APART)


def forget(s: Session) -> None:
    """Remove the rows of those that were not seen for long."""
    s.execute(delete(Worker).where(Worker.seen_at < now() - _KEPT * settings().lease), execution_options=_APART)


def live(s: Session) -> list[Worker]:
    """Those seen within three heartbeats, the oldest first. One whose jail does not hold is among them, with no queues."""
    recent = select(Worker).where(Worker.seen_at >= now() - _LIVE * settings().heartbeat)
    return list(s.scalars(recent.order_by(Worker.started_at, Worker.id)))


def serving(s: Session, queues: Iterable[str]) -> list[Worker]:
    """Live workers that take jobs of any of these queues."""
    wanted = set(queues)
    return [w for w in live(s) if wanted & set(w.queues)]
