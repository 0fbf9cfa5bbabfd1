"""The audit log: who changed what, when, and by which key. A row is written in the transaction of the change, so neither is there without the other.

Rows are only ever added: no function here changes one, and triggers in the database refuse it to everybody else (`app.models.Audit`).

    key.create, key.revoke, key.renew                       artifact.create, artifact.change, artifact.delete
    upload.begin, upload.delete                             job.submit, job.succeeded, job.failed, job.cancelled, job.delete
    comparison.submit, comparison.delete                    link.create, webhook.secret.create, webhook.secret.rotate, webhook.retry
"""

from __future__ import annotations

from contextvars import ContextVar

from sqlalchemy.orm import Session

from app.logs import request_id
from app.models import TERMINAL, Audit, Job

OPERATOR, SERVICE, KEY = "operator", "service", "key"
actor: ContextVar[tuple[str, str | None]] = ContextVar("actor", default=(SERVICE, None))
"""Who acts in this context, and the id of the key that it was done with: `key` over the API, `operator` on the command line, `service` by itself."""


def record(s: Session, action: str, owner: str, subject: str | None = None, **details) -> None:
    """Args:
    action: one of those above. owner: whose thing was changed. subject: its id. details: small, and no name that a stranger has typed.
    """
    who, key = actor.get()
    told = {k: v for k, v in details.items() if v is not None}
    s.add(Audit(owner=owner, actor=who, key_id=key, action=action, subject=subject, details=told, request_id=request_id.get()))


def moved(s: Session, job_id: str, state: str) -> None:
    """Of a job: how it has ended."""
    if state in TERMINAL:
        job = s.get_one(Job, job_id)
        record(s, f"job.{state}", job.owner, job_id)
