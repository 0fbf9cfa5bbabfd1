"""Sums that all processes add to, in the table `meters`: how often, how many bytes, how many seconds. Nothing in them names an owner or a job.

    stage_seconds   stage, method, device   count: how often    total: seconds
    stage_bytes     stage, method, device   count: bytes
    work            method, device          count: bytes of inputs of LARGE bytes or more    total: seconds from the fetch to the hand-over, but for the stages that run the model
    ends            state, type, cached     count: jobs         total: seconds from submission to end
    leases_expired  queue                   count: claims whose holder went silent
    deliveries      outcome                 count: attempts to deliver a webhook: `delivered`, `failed` (tried again), `given-up`
    scrubbed                                count: bytes that the scrubber has read
    damage          found                   count: blobs with other `bytes` than they were stored with, or `missing`
    requeues        why                     count: jobs given back, after a `crash` (counts as an attempt) a `drain` or for want of `storage` (do not)

What is added within a transaction is kept aside and written as its last statements, row after row in one order: the rows are the same for all, so
nobody holds one for long, and no two transactions wait for each other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sqlalchemy import event, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.db import now
from app.models import FAILED, TERMINAL, Job, Meter

LARGE = 8 << 20  # bytes; smaller inputs say more about starting a job than about the work
_ADDED = "meters"  # where a session keeps what was added
_OTHER = re.compile(r"[^A-Za-z0-9.:+-]+")
_LONGEST = 60


def add(s: Session, name: str, *, count: int = 1, total: float = 0.0, **labels: str) -> None:
    """Add to one meter with the transaction of `s`. Labels are words of our own (a stage, a method, a device, a problem's type), never a stranger's."""
    if not s.in_transaction():
        s.begin()
    added = s.info.setdefault(_ADDED, {})
    before = added.get(key := (name, written(labels)), (0, 0.0))
    added[key] = (before[0] + count, before[1] + total)


def written(labels: Mapping[str, str]) -> str:
    """Labels as they are kept: `device=cpu,method=quantize`, sorted, each value short and of harmless characters."""
    return ",".join(f"{name}={_OTHER.sub('-', str(labels[name]))[:_LONGEST]}" for name in sorted(labels))


def read(labels: str) -> dict[str, str]:
    """What `written` made, as a mapping again."""
    return dict(part.split("=", 1) for part in labels.split(",")) if labels else {}


def method(recipe: dict[str, Any]) -> str:
    """A resolved recipe's methods as one word, a search of scales and codebooks named, since they take many times as long: `prune+quantize:mse`."""

    def word(step: dict[str, Any]) -> str:
        slow = "gradient" if step.get("mapping") == "gradient" else step["scale_search"] if step.get("scale_search") in ("mse", "hqq") else ""
        return step["method"] + (slow and f":{slow}")

    return "+".join(dict.fromkeys(map(word, recipe["steps"])))


def rate(s: Session, method: str, device: str) -> float | None:
    """Bytes of input per second that workers have managed, from the fetch to the hand-over but for the stages that run the model; None where nothing was measured yet.

    Args:
        method: as `method` makes it. device: as in `Job.device`: cpu, or cuda and the GPU's name.
    """
    found = s.get(Meter, ("work", written({"method": method, "device": device})), populate_existing=True)
    return found.count / found.total if found is not None and found.total > 0 else None


def rates(s: Session, device: str) -> dict[str, float]:
    """`rate` of every method that was measured on a device."""
    work = s.scalars(select(Meter).where(Meter.name == "work", Meter.total > 0))
    return {labels["method"]: m.count / m.total for m in work if (labels := read(m.labels))["device"] == device}


def ended(s: Session, job_id: str, state: str) -> None:
    """Follower of a job's changes: counts its end, by the problem's type where it failed."""
    if state in TERMINAL:
        error, cached, seconds = s.execute(select(Job.error, Job.cached, now() - Job.created_at).where(Job.id == job_id)).one()
        kind = error.get("type", "none") if state == FAILED and error else "none"
        add(s, "ends", total=max(0.0, seconds), state=state, type=kind, cached="yes" if cached else "no")


def all_meters(s: Session) -> list[tuple[str, dict[str, str], int, float]]:
    """(name, labels, count, total) of every meter."""
    return [(m.name, read(m.labels), m.count, m.total) for m in s.scalars(select(Meter).order_by(Meter.name, Meter.labels))]


@event.listens_for(Session, "before_commit")
def _write(s: Session) -> None:
    added = s.info.pop(_ADDED, None)
    if not added:
        return
    insert = (sqlite if s.get_bind().dialect.name == "sqlite" else postgresql).insert(Meter)
    sums = {"count": Meter.count + insert.excluded.count, "total": Meter.total + insert.excluded.total}
    upsert = insert.on_conflict_do_update(index_elements=[Meter.name, Meter.labels], set_=sums)
    for (name, labels), (count, total) in sorted(added.items()):
        s.execute(upsert, {"name": name, "labels": labels, "count": count, "total": total})


@event.listens_for(Session, "after_soft_rollback")
def _forget(s: Session, transaction) -> None:
    if transaction.parent is None:
        s.info.pop(_ADDED, None)
