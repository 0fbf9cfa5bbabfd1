"""What keeps the service honest when processes die: leases that ran out, wake-ups that were lost, what dead attempts left behind.

Each step is idempotent and commits on its own; two sweeps at once do no harm.
"""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path

from sqlalchemy import and_, or_, select, update
from sqlalchemy.orm import Session

from app import deliveries, jobs, meters, recipients, workers
from app.config import settings
from app.db import now, reading
from app.errors import CustomerKeyGone, WorkerCrashed
from app.models import QUEUED, RUNNING, SIGNING, Job, Outbox, Upload
from app.queues import CPU, GPU
from app.resumable import drop_expired
from app.storage import Storage

log = logging.getLogger(__name__)
_SPOKEN_OF = 1000  # jobs in one look: a long queue needs a wake-up now and then, not one for each
_APART = {"synchronize_session": False}
SIGN_LEFT = "signing was started {n} times and ended each time without a result"


def expire(s: Session) -> int:
    """Jobs whose worker is silent go back to their queue, or fail once their attempts are used up; so do those that wait with a key which nobody can open any more. Returns how many."""
    expired = s.execute(select(Job.id, Job.fence, Job.queue).where(Job.state == RUNNING, Job.lease_until < now())).all()
    for job_id, fence, queue in expired:
        if jobs.requeue(s, job_id, fence, why="its worker went silent"):
            meters.add(s, "leases_expired", queue=queue)
    spent = s.scalars(select(Job).where(Job.state == SIGNING, Job.lease_until < now(), Job.sign_attempt >= settings().max_attempts)).all()
    for job in spent:
        if jobs.fail(s, job.id, job.fence, WorkerCrashed(SIGN_LEFT.format(n=job.sign_attempt)), SIGNING):
            meters.add(s, "leases_expired", queue=jobs.SIGN_QUEUE)
    deserted = s.scalars(select(Job).where(Job.state.in_([QUEUED, SIGNING]), recipients.deserted())).all()
    for job in deserted:
        jobs.fail(s, job.id, job.fence, CustomerKeyGone(recipients.GONE), job.state)
    return len(expired) + len(spent) + len(deserted)


def rewake(s: Session) -> set[str]:
    """Queues with a job or a delivery that nobody has claimed for `rewake` seconds since it was last spoken of get a wake-up in the outbox. Returns them."""
    unclaimed = or_(
        and_(Job.state == QUEUED, Job.created_at < now() - settings().rewake),
        and_(Job.state == SIGNING, or_(Job.lease_until.is_(None), Job.lease_until < now())),
    )
    silent = and_(unclaimed, or_(Job.woken_at.is_(None), Job.woken_at < now() - settings().rewake))
    found = s.execute(select(Job.id, Job.state, Job.queue).where(silent).limit(_SPOKEN_OF)).all()
    topics = {jobs.SIGN_QUEUE if state == SIGNING else queue for _, state, queue in found}
    if deliveries.rewake(s):
        topics.add(deliveries.QUEUE)
    s.add_all([Outbox(topic=t) for t in sorted(topics)])
    s.execute(update(Job).where(Job.id.in_([ident for ident, _, _ in found])).values(woken_at=now()), execution_options=_APART)
    return topics


def rehome(s: Session) -> int:
    """Queued jobs that went to a GPU because one was there (`device: auto`) go to the CPU when none is left. Returns how many."""
    if workers.serving(s, GPU):
        return 0
    moved = 0
    for there, here in zip(GPU, CPU):
        waiting = (Job.state == QUEUED, Job.queue == there)
        specs = s.execute(select(Job.id, Job.spec).where(*waiting)).all()  # read here: PostgreSQL looks into no document that holds a \u0000
        free = [ident for ident, spec in specs if spec.get("device") == "auto"]
        for at in range(0, len(free), _SPOKEN_OF):
            these = update(Job).where(Job.id.in_(free[at : at + _SPOKEN_OF]), *waiting)
            moved += s.execute(these.values(queue=here, cache_key=None), execution_options=_APART).rowcount  # the key says that a GPU computed it
        s.add_all([Outbox(topic=here)] if free else [])
    return moved


def live_claims() -> set[tuple[str, str]]:
    """(job, fence) of every job that somebody may be working on or is handing over, (job, `recovery`) of every one that may go on where an attempt ended,
    and (`uploads`, id) of every upload that may go on."""
    with reading() as s:
        uploads = s.scalars(select(Upload.id).where(Upload.received < Upload.length)).all()
        rows = s.execute(select(Job.id, Job.fence, Job.handoff, Job.state).where(Job.state.in_([RUNNING, SIGNING]))).all()
        begun = s.scalars(select(Job.id).where(Job.state.in_([QUEUED, RUNNING]), Job.fence > 0)).all()
    claims = {(job_id, str(fence)) for job_id, fence, _, _ in rows} | {("uploads", ident) for ident in uploads} | {(ident, "recovery") for ident in begun}
    for job_id, _, handoff, state in rows:
        if state == SIGNING and (handoff or {}).get("prefix"):
            claims.add((job_id, handoff["prefix"].rsplit("/", 1)[1]))
    return claims


def drop_orphans(storage: Storage) -> int:
    """Remove what dead attempts and broken uploads left in `tmp/` and in the scratch folder, once it is a lease old (uploads: `orphan_age`)."""
    dropped = drop_expired(storage)
    before = time.time()  # what appears after the claims were read is of claims that they do not have
    claims = live_claims()
    for found in [*storage.list("tmp")]:
        parts = found.key.split("/")
        age = settings().orphan_age if parts[1] in ("uploads", "check") else settings().lease
        if found.modified < before - age and tuple(parts[1:3]) not in claims:
            storage.delete(found.key)
            dropped += 1
    return dropped + drop_scratch() + storage.drop_unfinished(settings().orphan_age)


def drop_scratch() -> int:
    """The scratch folder alone: a worker on a host of its own clears up after the one that died there before it."""
    left = [p for p in settings().scratch.glob("*-*") if _modified(p) < time.time() - settings().lease]
    claims = live_claims() if left else set()
    dead = [p for p in left if tuple(p.name.rsplit("-", 1)) not in claims]
    for path in dead:
        shutil.rmtree(path, ignore_errors=True)
    return len(dead)


def _modified(path: Path) -> float:
    """Its worker may remove it at any moment."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()
