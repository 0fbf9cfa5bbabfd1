"""API keys: `mp_` and 256 random bits. The database keeps their SHA-256, so that a copy of it opens nothing."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Header
from sqlalchemy import select
from sqlalchemy.orm import Session

from app import db
from app.config import settings
from app.errors import Unauthorized
from app.models import ApiKey

FIRST_OWNER = "default"


def digest(key: str) -> str:
    return hashlib.sha256(key.encode(errors="replace")).hexdigest()


def create_key(s: Session, owner: str, name: str = "") -> str:
    """A new key of `owner`; this is the only time that it can be seen."""
    key = "mp_" + secrets.token_urlsafe(32)
    s.add(ApiKey(owner=owner, name=name, digest=digest(key)))
    return key


def ensure_first_key() -> Path:
    """The first key, in `home/api-key` (0600): made at the first start, and again when the file is gone."""
    path = settings().home / "api-key"
    with db.session() as s, s.begin():
        if path.exists() and _find(s, path.read_text().strip()):
            return path
        key = create_key(s, FIRST_OWNER, "first")
    temporary = path.with_name(f".api-key-{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as f:
        f.write(key + "\n")
    os.replace(temporary, path)
    return path


def _find(s: Session, key: str) -> str | None:
    """The owner of a key that counts. The look-up is by digest, so its timing tells nothing about the key."""
    return s.scalar(select(ApiKey.owner).where(ApiKey.digest == digest(key), ApiKey.revoked_at.is_(None)))


def owner(authorization: Annotated[str | None, Header(include_in_schema=False)] = None) -> str:
    """The owner whose bearer key the request carries.

    Raises:
        Unauthorized: no key, not one of ours, or revoked.
    """
    scheme, _, key = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise Unauthorized("send an API key: `Authorization: Bearer mp_...`")
    with db.session() as s:
        found = _find(s, key.strip())
    if found is None:
        raise Unauthorized("this API key is not known, or was revoked")
    return found


Owner = Annotated[str, Depends(owner)]
