"""What follows a change of a job's state, in the same transaction: everything that others are to learn of it.

A follower is called with the session, the job's id and the state that it has now. It writes rows and does nothing else: what leaves the
database (a webhook, a wake-up) leaves it after the commit.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy.orm import Session

from app import audit, deliveries, events, meters

FOLLOWERS: tuple[Callable[[Session, str, str], None], ...] = (events.moved, meters.ended, deliveries.announce, audit.moved)


def moved(s: Session, job_id: str, state: str) -> None:
    for follow in FOLLOWERS:
        follow(s, job_id, state)
