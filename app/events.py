"""What happened to a job, row by row, each written in the transaction in which it happened.

`seq` counts per job without a gap (once a job has ended for a while, its progress is forgotten: `app.retention`): it is taken from the job's own row, whose lock the writer then holds until it commits. So whoever has read up to
some `seq` and asks for what came after it misses nothing, however many processes write.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from app.db import now, reading
from app.models import TERMINAL, Job, JobEvent

STATE, PROGRESS, LOG = KINDS = ("state", "progress", "log")
STEP, PAUSE = 0.02, 2.0  # progress is told anew after so much of the whole and so many seconds, and with every stage
MOST = 1000  # events of one job; beyond it only changes of its state are told
PAGE = 100  # events read at once


def _add(s: Session, job_id: str, kind: str, data: dict[str, Any]) -> None:
    taken = update(Job).where(Job.id == job_id).values(last_event=Job.last_event + 1).returning(Job.last_event)
    if kind != STATE:
        taken = taken.where(Job.last_event < MOST)
    seq = s.scalar(taken, execution_options={"synchronize_session": False})
    if seq is not None:
        s.execute(insert(JobEvent).values(job_id=job_id, seq=seq, kind=kind, data=data))


def moved(s: Session, job_id: str, state: str) -> None:
    """A follower (`app.followers`): the state, and what came of the job where it has ended."""
    attempt, output, error = s.execute(select(Job.attempt, Job.output_id, Job.error).where(Job.id == job_id)).one()
    ended = {"output": output, "error": error} if state in TERMINAL else {}
    _add(s, job_id, STATE, {"state": state, "attempt": attempt} | {k: v for k, v in ended.items() if v is not None})


def progress(s: Session, job_id: str, told: dict[str, Any]) -> None:
    """How far it is, unless that was told a moment ago: some hundred rows at most, as long as a job tells no more than a handful of stages."""
    last = s.execute(select(JobEvent.data, now() - JobEvent.created_at).where(JobEvent.job_id == job_id, JobEvent.kind == PROGRESS).order_by(JobEvent.seq.desc()).limit(1)).first()
    if last is not None:
        before, age = last
        on = told["fraction"] - before["fraction"]
        if told["stage"] == before["stage"] and 0 <= on and (on < STEP or age < PAUSE):
            return
    _add(s, job_id, PROGRESS, told)


def log(s: Session, job_id: str, message: str) -> None:
    """A line for whoever watches."""
    _add(s, job_id, LOG, {"message": message})


def after(job_id: str, seq: int) -> tuple[list[JobEvent], bool]:
    """The next events after `seq`, `PAGE` at most, and whether there will be no more of them."""
    with reading() as s:
        state = s.scalar(select(Job.state).where(Job.id == job_id))  # first: what has ended by now has written its last event
        rows = list(s.scalars(select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.seq > seq).order_by(JobEvent.seq).limit(PAGE)))
    return rows, len(rows) < PAGE and (state is None or state in TERMINAL)
