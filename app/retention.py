"""What goes when its time has come: artifacts and ended jobs past their `expires_at` (by default nothing has one); the progress that a job told, a day
after its end; deliveries that are over, after a month; statistics that no job has asked for, after a week.

Few rows at a time, found by an index, each batch in a transaction of its own.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, delete, exists, or_, select
from sqlalchemy.orm import Session

from app import audit, statistics
from app.db import now, reading, session
from app.errors import InUse
from app.events import PROGRESS
from app.models import TERMINAL, Artifact, Companion, Comparison, Delivery, Job, JobEvent, Statistic

BATCH = 100
PROGRESS_KEPT, DELIVERIES_KEPT = 24 * 3600.0, 30 * 24 * 3600.0  # seconds
_APART = {"synchronize_session": False}
_WORKED_ON = or_(
    exists().where(Job.input_id == Artifact.id, Job.state.not_in(TERMINAL)),
    exists().where(Companion.artifact_id == Artifact.id, Companion.job_id == Job.id, Job.state.not_in(TERMINAL)),
)
_ENDED = exists().where(Job.id == JobEvent.job_id, Job.finished_at < now() - PROGRESS_KEPT)
_TO_BE_TOLD = exists().where(Delivery.job_id == Job.id, Delivery.due_at.is_not(None))


def until(seconds: float | None):
    """The `expires_at` of what is to be kept for `seconds` from now on; None: for ever."""
    return None if seconds is None else now() + seconds


def remove(s: Session, ident: str) -> bool:
    """Delete an artifact. Its jobs stay, its bytes go with the next collections. False: it was gone already.

    Raises:
        InUse: a job works on it.
    """
    found = s.scalar(select(Artifact).where(Artifact.id == ident).with_for_update())  # a job that is being submitted waits for this, or this for it
    if found is None:
        return False
    beside = select(Companion.job_id).where(Companion.artifact_id == ident)
    if job := s.scalar(select(Job.id).where(or_(Job.input_id == ident, Job.id.in_(beside)), Job.state.not_in(TERMINAL)).limit(1)):
        raise InUse(f"job {job} works on it; cancel it, or wait for its end")
    s.delete(found)
    audit.record(s, "artifact.delete", found.owner, ident)
    return True


def expire() -> tuple[int, int]:
    """Delete what has expired. Returns how many artifacts and jobs."""
    _forget(JobEvent, JobEvent.kind == PROGRESS, JobEvent.created_at < now() - PROGRESS_KEPT, _ENDED)
    _forget(Delivery, Delivery.due_at.is_(None), Delivery.created_at < now() - DELIVERIES_KEPT)
    _forget(Statistic, Statistic.used_at < now() - statistics.KEPT)
    artifacts, gone = 0, BATCH
    while gone:
        gone = sum(map(_expire_artifact, _expired_artifacts()))
        artifacts += gone
    return artifacts, _expire_jobs()


def _forget(model: type[JobEvent | Delivery | Statistic], *old: ColumnElement[bool]) -> None:
    """Delete the rows that are `old`, the oldest first. They are locked from the look on: a delivery that is to be tried once more stays."""
    oldest = select(model).where(*old).order_by(model.used_at if model is Statistic else model.created_at).limit(BATCH).with_for_update(skip_locked=True)
    found = [None] * BATCH
    while len(found) == BATCH:
        with session() as s, s.begin():
            found = s.scalars(oldest).all()
            for row in found:  # each goes by its primary key, in one statement for all
                s.delete(row)


def _expired_artifacts() -> list[str]:
    """The longest expired first."""
    query = select(Artifact.id).where(Artifact.expires_at < now(), ~_WORKED_ON).order_by(Artifact.expires_at).limit(BATCH)
    with reading() as s:
        return list(s.scalars(query))


def _expire_artifact(ident: str) -> bool:
    with session() as s, s.begin():
        still = select(Artifact.id).where(Artifact.id == ident, Artifact.expires_at < now(), ~_WORKED_ON).with_for_update(skip_locked=True)
        try:
            return s.scalar(still) is not None and remove(s, ident)
        except InUse:  # by a job that came between the two looks
            return False


def _expire_jobs() -> int:
    """With their events, idempotency keys and deliveries, and comparisons that lose the last of theirs; one whose webhook is still to be delivered waits
    for that."""
    found, total = [None] * BATCH, 0
    while len(found) == BATCH:
        with session() as s, s.begin():
            expired = select(Job.id).where(Job.expires_at < now(), Job.state.in_(TERMINAL), ~_TO_BE_TOLD).order_by(Job.expires_at)
            found = s.scalars(expired.limit(BATCH)).all()
            gone = s.execute(delete(Job).where(Job.id.in_(found)).returning(Job.id, Job.owner), execution_options=_APART).all()
            for ident, owner in gone:
                audit.record(s, "job.delete", owner, ident)
            total += len(gone)
    if total:
        with session() as s, s.begin():
            empty = delete(Comparison).where(~exists().where(Job.comparison_id == Comparison.id))
            for ident, owner in s.execute(empty.returning(Comparison.id, Comparison.owner), execution_options=_APART).all():
                audit.record(s, "comparison.delete", owner, ident)
    return total
