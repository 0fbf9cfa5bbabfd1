"""Webhooks as rows: written with the job's end, claimed by whoever sends them, tried again until they are taken or given up.

A claim counts the attempt and sets a lease, so that no two processes send one at a time, and one whose process died is sent again: at least once,
under the same id. Functions take a session inside a transaction; the caller commits.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from sqlalchemy import and_, or_, select, update
from sqlalchemy.orm import Session

from app import meters
from app.claiming import take
from app.config import settings
from app.db import now
from app.models import TERMINAL, Delivery, Job, Outbox
from app.times import rfc3339

QUEUE = "webhooks"
DELAYS = (5, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600, 14 * 3600, 20 * 3600, 24 * 3600)
"""Seconds before each further attempt; then it is given up. Standard Webhooks' own schedule."""
_MAX_TEXT = 500
_APART = {"synchronize_session": False}


def announce(s: Session, job_id: str, state: str) -> None:
    """Follower of a job's changes: its end becomes a delivery where a webhook was asked for."""
    if state not in TERMINAL:
        return
    columns = (Job.owner, Job.webhook, Job.input_id, Job.output_id, Job.error, Job.spec, Job.attempt, Job.cached, Job.created_at, Job.finished_at)
    job = s.execute(select(*columns).where(Job.id == job_id, Job.webhook.is_not(None))).one_or_none()
    if job is None or not job.webhook:
        return
    error = job.error and {"type": job.error["type"], "title": job.error["title"], "detail": job.error["detail"][:_MAX_TEXT]}
    data = {
        **{"id": job_id, "state": state, "input": job.input_id, "output": job.output_id, "error": error},
        **{"tags": job.spec.get("tags", {}), "attempts": job.attempt, "cached": job.cached},
        **{"created_at": rfc3339(job.created_at), "finished_at": rfc3339(job.finished_at)},
    }
    body = {"type": f"job.{state}", "timestamp": rfc3339(job.finished_at), "data": data}
    url = job.webhook["url"]
    s.add_all([Delivery(job_id=job_id, owner=job.owner, url=url, host=urlsplit(url).hostname, body=body), Outbox(topic=QUEUE)])


def claim(s: Session, hosts: Collection[str] = (), owners: Collection[str] = ()) -> Delivery | None:
    """The delivery that has been due for longest, leaving out hosts and owners that have enough under way. None: there is none."""
    due = and_(Delivery.due_at <= now(), or_(Delivery.lease_until.is_(None), Delivery.lease_until < now()))
    eligible = select(Delivery.id).where(due, Delivery.host.not_in(hosts), Delivery.owner.not_in(owners))
    lease_until = now() + 3 * settings().webhook_timeout
    return take(s, Delivery, eligible.order_by(Delivery.due_at, Delivery.id), attempt=Delivery.attempt + 1, lease_until=lease_until, woken_at=None)


def _settle(s: Session, delivery: Delivery, **values) -> None:
    """How an attempt ended, unless another one has been claimed since."""
    mine = update(Delivery).where(Delivery.id == delivery.id, Delivery.attempt == delivery.attempt)
    s.execute(mine.values(lease_until=None, **values), execution_options=_APART)


def delivered(s: Session, delivery: Delivery) -> None:
    _settle(s, delivery, due_at=None, delivered_at=now(), error=None)
    meters.add(s, "deliveries", outcome="delivered")


def failed(s: Session, delivery: Delivery, error: str, *, final: bool = False, retry_after: str | None = None) -> None:
    """Due again after the schedule's delay, with up to a fifth more, so that many do not come back at once; or given up.

    Args:
        retry_after: the header as it came; respected where it asks for more time, up to a day.
    """
    last = final or delivery.attempt > len(DELAYS)
    meters.add(s, "deliveries", outcome="given-up" if last else "failed")
    if last:
        return _settle(s, delivery, due_at=None, error=error[:_MAX_TEXT])
    delay = DELAYS[delivery.attempt - 1] * settings().webhook_backoff * random.uniform(1.0, 1.2)
    _settle(s, delivery, due_at=now() + max(delay, min(asked_delay(retry_after), DELAYS[-1])), error=error[:_MAX_TEXT])


def asked_delay(retry_after: str | None) -> float:
    """Seconds that a `Retry-After` header asks for (a number, or a date); 0 where it says nothing that can be read."""
    text = (retry_after or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:10])
    try:
        then = parsedate_to_datetime(text)
        return max(0.0, ((then if then.tzinfo else then.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def retry(s: Session, delivery: Delivery) -> None:
    """One more attempt, at once, also of one that was given up or taken. One that is under way just now is that attempt."""
    free = or_(Delivery.lease_until.is_(None), Delivery.lease_until < now())
    statement = update(Delivery).where(Delivery.id == delivery.id, free).values(due_at=now(), delivered_at=None, woken_at=None)
    if s.execute(statement, execution_options=_APART).rowcount:
        s.add(Outbox(topic=QUEUE))


def rewake(s: Session) -> bool:
    """Whether something is due that nobody was told of for `rewake` seconds. It is taken as told now."""
    silent = or_(Delivery.woken_at.is_(None), Delivery.woken_at < now() - settings().rewake)
    free = or_(Delivery.lease_until.is_(None), Delivery.lease_until < now())
    waiting = update(Delivery).where(Delivery.due_at <= now(), free, silent)
    return s.execute(waiting.values(woken_at=now()), execution_options=_APART).rowcount > 0
