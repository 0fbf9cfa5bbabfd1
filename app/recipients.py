"""Customers' keys on their way to the process that needs them: sealed with age to the processes that run just now, whose identities are in their memory and nowhere else.

    api      seals the key to the workers that take the job's queue           Job.sealed_key, a JobRecipient for each
    worker   opens it; seals what the result is under to the sign processes   the same, of those

So nothing that is stored, in the database, a backup of it or the broker, opens anything once those processes have ended, and a job whose recipients have all ended fails
(`app.sweep`) rather than wait.
"""

from __future__ import annotations

import base64
import json
import logging
import threading

import pyrage
from sqlalchemy import delete, exists, or_, select
from sqlalchemy.orm import Session

from app.config import settings
from app.db import now, session
from app.errors import CustomerKeyGone
from app.models import Job, JobRecipient, Recipient

log = logging.getLogger(__name__)
_LIVE = 3  # heartbeats
_KEPT = 4  # leases: a database that was away must not make everybody seem gone
_APART = {"synchronize_session": False}
GONE = "every process that could open the key has ended; send the job again, with the key"


class Identity:
    """This process's.

    Args:
        ident: the process's id. queues: those that it takes jobs of.
    """

    def __init__(self, ident: str, queues: tuple[str, ...]):
        self.id, self.queues, self._key = ident, queues, pyrage.x25519.Identity.generate()

    def tell(self, s: Session) -> None:
        """It is there."""
        s.merge(Recipient(id=self.id, queues=list(self.queues), age=str(self._key.to_public()), seen_at=s.scalar(select(now()))))

    def leave(self, s: Session) -> None:
        s.execute(delete(Recipient).where(Recipient.id == self.id), execution_options=_APART)

    def keep_told(self) -> None:
        """From a thread, with every heartbeat, until the process ends."""

        def keep() -> None:
            wait = threading.Event().wait
            while True:
                try:
                    with session() as s, s.begin():
                        self.tell(s)
                except Exception as e:  # whatever the database raises: the next look may find it
                    log.warning("this process could not say that it takes customers' keys: %s", e)
                wait(settings().heartbeat)

        threading.Thread(target=keep, name="recipient", daemon=True).start()

    def open(self, job: Job) -> bytes:
        """The key that came with a job.

        Raises:
            CustomerKeyGone: it was sealed to others, or for another job.
        """
        try:
            told = json.loads(pyrage.decrypt(base64.b64decode(job.sealed_key or ""), [self._key]))
        except (pyrage.DecryptError, ValueError):
            raise CustomerKeyGone(GONE) from None
        if told["job"] != job.id:
            raise CustomerKeyGone(GONE)
        return bytes.fromhex(told["key"])


def live(s: Session, queue: str) -> list[Recipient]:
    """Processes that take jobs of the queue and were seen within three heartbeats."""
    found = s.scalars(select(Recipient).where(Recipient.seen_at >= now() - _LIVE * settings().heartbeat))
    return [r for r in found if queue in r.queues]


def sealed(to: list[Recipient], job_id: str, key: bytes) -> str:
    return base64.b64encode(pyrage.encrypt(json.dumps({"job": job_id, "key": key.hex()}).encode(), [pyrage.x25519.Recipient.from_str(r.age) for r in to])).decode()


def address(s: Session, job_id: str, to: list[Recipient]) -> None:
    """Who can open a job's key from now on: these and nobody else."""
    s.execute(delete(JobRecipient).where(JobRecipient.job_id == job_id), execution_options=_APART)
    s.add_all(JobRecipient(job_id=job_id, recipient=r.id) for r in to)
    s.flush()


def can_open(ident: str | None):
    """Jobs that need no key, or one that this process has."""
    theirs = exists().where(JobRecipient.job_id == Job.id, JobRecipient.recipient == ident)
    return or_(Job.sealed_key.is_(None), theirs)


def deserted():
    """Jobs whose key nobody has any more."""
    there = exists().where(JobRecipient.job_id == Job.id, JobRecipient.recipient == Recipient.id)
    return Job.sealed_key.is_not(None) & ~there


def forget(s: Session) -> None:
    """Remove those that were not seen for long: nobody waits for them any more."""
    s.execute(delete(Recipient).where(Recipient.seen_at < now() - _KEPT * settings().lease), execution_options=_APART)
