"""Whose turn it is: the fair order of owners, and of each owner's queues.

    owner    fewest running jobs first; then whoever was served the longest ago, or never; then whoever has waited longest
    queue    the one with the job of the highest priority first; then the most specialised one

Results are signed by turns as well: `signing_turns`. So an owner's thousand jobs hold up another's single one by no more than the job that is running, and nobody's priorities come before another's.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import CTE, func, literal, select, true, union_all
from sqlalchemy.orm import Session

from app.db import now
from app.models import QUEUED, RUNNING, SIGNING, Job


def turns(s: Session, queues: Sequence[str]) -> list[tuple[str, str]]:
    """(owner, queue) of everyone who has a queued job there, in turn. Nothing is locked: by the time that one is served, another may have been.

    Args:
        queues: the most specialised first.
    """
    waiting = _owners(QUEUED)
    mine = Job.owner == waiting.c.owner
    standing = select(
        waiting.c.owner,
        select(func.count()).where(mine, Job.state == RUNNING).scalar_subquery().label("running"),
        select(func.max(Job.started_at)).where(mine).scalar_subquery().label("served"),
        select(func.min(Job.created_at)).where(mine, Job.state == QUEUED).scalar_subquery().label("since"),
    ).where(waiting.c.owner.is_not(None)).cte("standing")  # fmt: skip
    taken = union_all(*(select(literal(q).label("queue"), literal(i).label("rank")) for i, q in enumerate(queues))).cte("taken")
    here = (Job.queue == taken.c.queue, Job.state == QUEUED, Job.owner == standing.c.owner)
    first = select(func.min(Job.priority)).where(*here).correlate(taken, standing).scalar_subquery().label("first")
    pairs = select(standing, taken, first).join_from(standing, taken, true()).subquery()
    order = (pairs.c.running, pairs.c.served.nulls_first(), pairs.c.since, pairs.c.owner, pairs.c.first, pairs.c.rank)
    found = s.execute(select(pairs.c.owner, pairs.c.queue, pairs.c.first).order_by(*order))
    return [(owner, queue) for owner, queue, first in found if first is not None]


def signing_turns(s: Session) -> list[str]:
    """Everyone who has a job to be signed: fewest being signed first; then whoever's last job ended the longest ago; then whoever has waited longest."""
    waiting = _owners(SIGNING)
    mine = Job.owner == waiting.c.owner
    signing = select(func.count()).where(mine, Job.state == SIGNING, Job.lease_until >= now()).scalar_subquery()
    served = select(func.max(Job.finished_at)).where(mine).scalar_subquery()
    since = select(func.min(Job.created_at)).where(mine, Job.state == SIGNING).scalar_subquery()
    query = select(waiting.c.owner).where(waiting.c.owner.is_not(None))
    return list(s.scalars(query.order_by(signing, served.nulls_first(), since, waiting.c.owner)))


def _owners(state: str) -> CTE:
    """Who has jobs in a state. The index is jumped through from owner to owner, so it costs a few look-ups for each, however many jobs they have."""
    found = select(func.min(Job.owner).label("owner")).where(Job.state == state).cte("waiting", recursive=True)
    following = select(func.min(Job.owner)).where(Job.state == state, Job.owner > found.c.owner).scalar_subquery()
    return found.union_all(select(following).where(found.c.owner.is_not(None)))
