"""API keys: `mp_` and 256 random bits. The database keeps their SHA-256, so that a copy of it opens nothing."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Header
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app import db
from app.config import settings
from app.db import now
from app.errors import NotFound, Unauthorized
from app.models import ApiKey
from app.settled import settled

FIRST_OWNER = "default"


def digest(key: str) -> str:
    return hashlib.sha256(key.encode(errors="replace")).hexdigest()


def new_key() -> str:
    return "mp_" + secrets.token_urlsafe(32)


def create_key(s: Session, owner: str, name: str = "", key: str | None = None) -> str:
    """A key of `owner`, a new one by default; this is the only time that it can be seen."""
    key = key or new_key()
    s.add(ApiKey(owner=owner, name=name, digest=digest(key)))
    return key


def issue_key(owner: str, name: str = "") -> str:
    """The same, in a transaction of its own."""
    key = new_key()
    return settled(lambda s: create_key(s, owner, name, key), lambda s: key if owner_of(s, key) else None)


def all_keys() -> list[ApiKey]:
    """The newest first, revoked ones too."""
    with db.reading() as s:
        return list(s.scalars(select(ApiKey).order_by(ApiKey.created_at.desc(), ApiKey.id)))


def revoke_key(ident: str) -> None:
    """Raises:
    NotFound: no key has this id.
    """
    still = update(ApiKey).where(ApiKey.id == ident).values(revoked_at=func.coalesce(ApiKey.revoked_at, now()))
    if not settled(lambda s: s.execute(still).rowcount):
        raise NotFound(f"no API key has the id {ident[:100]!r}; `modelpress db list-keys` tells them")


def ensure_first_key() -> Path:
    """The first key, in `home/api-key` (0600): made at the first start, and again when the file is gone."""
    path = settings().home / "api-key"
    with db.reading() as s:
        if path.exists() and owner_of(s, path.read_text().strip()):
            return path
    key = issue_key(FIRST_OWNER, "first")
    temporary = path.with_name(f".api-key-{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as f:
        f.write(key + "\n")
    os.replace(temporary, path)
    return path


def owner_of(s: Session, key: str) -> str | None:
    """The owner of a key that counts. The look-up is by digest, so its timing tells nothing about the key."""
    return s.scalar(select(ApiKey.owner).where(ApiKey.digest == digest(key), ApiKey.revoked_at.is_(None)))


def owner(authorization: Annotated[str | None, Header(include_in_schema=False)] = None) -> str:
    """The owner whose bearer key the request carries.

    Raises:
        Unauthorized: no key, not one of ours, or revoked.
    """
    scheme, _, key = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise Unauthorized("no key was sent: `Authorization: Bearer mp_...`; the command line takes it from MODELPRESS_API_KEY, else from the file api-key in MODELPRESS_HOME")
    with db.reading() as s:
        found = owner_of(s, key.strip())
    if found is None:
        raise Unauthorized("this API key is not known, or was revoked")
    return found


Owner = Annotated[str, Depends(owner)]
