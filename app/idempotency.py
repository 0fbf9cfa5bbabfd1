"""`Idempotency-Key`: a request that is sent again gets the answer of the first one, and does nothing twice (draft-ietf-httpapi-idempotency-key-header).

The key is a row beside the job, written in the job's transaction: of two requests at once, one makes the job and the other finds it.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from app import customer_keys
from app.config import settings
from app.db import now
from app.errors import IdempotencyKeyReused, MalformedRequest
from app.models import IdempotencyKey, Job


@dataclass(frozen=True)
class Request:
    """Who sends what under which key; `digest` is the SHA-256 of the body, whatever the order and spacing of its JSON."""

    owner: str
    key: str
    digest: str


def request(owner: str, key: str | None, body: Any) -> Request | None:
    """Raises:
    MalformedRequest: the key is empty, too long, or not printable ASCII.
    """
    if key is None:
        return None
    if not re.fullmatch(r"[\x20-\x7e]{1,255}", key):
        raise MalformedRequest(f"Idempotency-Key has {len(key)} characters; send 1 to 255 printable ones, such as a UUID")
    return Request(owner, key, hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest())


def _young():
    return IdempotencyKey.created_at >= now() - settings().idempotency_age


def earlier(s: Session, asked: Request | None, customer_key: bytes | None = None) -> Job | None:
    """The job that the same request has made before.

    Raises:
        IdempotencyKeyReused: another request has used the key. WrongCustomerKey and its like: that request came with another customer's key.
    """
    if asked is None:
        return None
    query = select(IdempotencyKey.digest, Job).join(Job, Job.id == IdempotencyKey.job_id)
    found = s.execute(query.where(IdempotencyKey.owner == asked.owner, IdempotencyKey.key == asked.key, _young())).first()
    if found is not None and found[0] != asked.digest:
        raise IdempotencyKeyReused(f"the key {asked.key[:60]!r} was sent with another body; a new request needs a key of its own")
    if found is not None:
        customer_keys.held(s, customer_key, found[1].customer_key)
    return found and found[1]


def remember(s: Session, asked: Request | None, job: Job) -> None:
    """Keep the key with the job.

    Raises:
        IntegrityError: the same key has just been kept for another job; roll back, and ask `earlier` again.
    """
    if asked is None:
        return
    mine = (IdempotencyKey.owner == asked.owner, IdempotencyKey.key == asked.key)
    s.execute(delete(IdempotencyKey).where(*mine, ~_young()), execution_options={"synchronize_session": False})
    s.add(IdempotencyKey(owner=asked.owner, key=asked.key, digest=asked.digest, job_id=job.id))
    s.flush()


def forget_old(s: Session) -> int:
    """Drop the keys that no longer count. Returns how many."""
    return s.execute(delete(IdempotencyKey).where(~_young()), execution_options={"synchronize_session": False}).rowcount
