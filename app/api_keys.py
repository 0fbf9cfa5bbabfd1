"""API keys: `mp_` and 256 random bits. The database keeps their SHA-256, so that a copy of it opens nothing.

    create ──> counts ──────────────> expires, or is revoked: opens nothing from then on
                 └─ renew ──> a new key of the same owner, name and scope; the old one counts for the overlap, and no longer
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from app import audit, db
from app.config import settings
from app.db import now
from app.errors import Conflict, NotFound
from app.models import ApiKey, new_id
from app.owned import find
from app.scopes import ADMIN, WRITE
from app.settled import settled

FIRST_OWNER, FIRST_NAME = "default", "first"
OVERLAP = 24 * 3600.0  # seconds that a renewed key goes on counting
_APART = {"synchronize_session": False}


def digest(key: str) -> str:
    return hashlib.sha256(key.encode(errors="replace")).hexdigest()


def new_key() -> str:
    return "mp_" + secrets.token_urlsafe(32)


def create_key(
    s: Session, owner: str, name: str = "", key: str | None = None, scope: str = WRITE, expires_at: float | None = None, ident: str | None = None
) -> str:
    """A key of `owner`, a new one by default; this is the only time that it can be seen.

    Args:
        expires_at: seconds since the epoch; None: never.
    """
    key, ident = key or new_key(), ident or new_id()
    s.add(ApiKey(id=ident, owner=owner, name=name, digest=digest(key), scope=scope, expires_at=expires_at))
    audit.record(s, "key.create", owner, ident, scope=scope, expires_at=expires_at)
    return key


def issue_key(owner: str, name: str = "", scope: str = WRITE, expires_at: float | None = None) -> tuple[str, ApiKey]:
    """The same, in a transaction of its own: the key, and its row."""
    key, ident = new_key(), new_id()

    def make(s: Session) -> ApiKey:
        create_key(s, owner, name, key, scope, expires_at, ident)
        s.flush()
        return s.get_one(ApiKey, ident, populate_existing=True)

    return key, settled(make, lambda s: s.get(ApiKey, ident))


def all_keys() -> list[ApiKey]:
    """The newest first, revoked ones too."""
    with db.reading() as s:
        return list(s.scalars(select(ApiKey).order_by(ApiKey.created_at.desc(), ApiKey.id)))


def revoke_key(ident: str, owner: str | None = None) -> None:
    """Args: owner: whose it has to be; None: an operator may revoke anybody's.

    Raises:
        NotFound: no key has this id.
    """

    def revoke(s: Session) -> bool:
        found = _row(s, ident, owner)
        if found is None:
            return False
        if s.execute(update(ApiKey).where(ApiKey.id == ident, ApiKey.revoked_at.is_(None)).values(revoked_at=now()), execution_options=_APART).rowcount:
            audit.record(s, "key.revoke", found.owner, ident)
        return True

    if not settled(revoke):
        raise _unknown(ident, owner)


def renew_key(ident: str, owner: str | None = None, overlap: float = OVERLAP, expires_at: float | None = None) -> tuple[str, ApiKey]:
    """A new key in the place of one that counts, which goes on counting for `overlap` seconds so that its users can change over.

    Args:
        owner: see `revoke_key`. expires_at: of the new key.

    Raises:
        NotFound: no key has this id. Conflict: it no longer counts.
    """
    key, new = new_key(), new_id()

    def renew(s: Session) -> ApiKey:
        old = _row(s, ident, owner)
        if old is None:
            raise _unknown(ident, owner)
        if s.scalar(select(ApiKey.id).where(ApiKey.id == ident, *_counting())) is None:
            raise Conflict("the key no longer counts; create a new one")
        end = now() + overlap
        later = or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > end)
        s.execute(update(ApiKey).where(ApiKey.id == ident, later).values(expires_at=end), execution_options=_APART)
        audit.record(s, "key.renew", old.owner, ident, by=new, overlap=overlap)
        create_key(s, old.owner, old.name, key, old.scope, expires_at, new)
        s.flush()
        return s.get_one(ApiKey, new, populate_existing=True)

    return key, settled(renew, lambda s: s.get(ApiKey, new))


def _row(s: Session, ident: str, owner: str | None) -> ApiKey | None:
    return s.get(ApiKey, ident) if owner is None else find(s, ApiKey, ident, owner)


def _unknown(ident: str, owner: str | None) -> NotFound:
    return NotFound("there is no such API key" if owner else f"no API key has the id {ident[:100]!r}; `modelpress keys list` tells them")


def ensure_first_key() -> Path:
    """The first key, in `home/api-key` (0600): made at the first start, and again when the file is gone or its key no longer counts."""
    path = settings().home / "api-key"
    with db.reading() as s:
        if path.exists() and owner_of(s, path.read_text().strip()):
            return path
    key, _ = issue_key(FIRST_OWNER, FIRST_NAME, ADMIN)
    temporary = path.with_name(f".api-key-{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as f:
        f.write(key + "\n")
    os.replace(temporary, path)
    return path


def _counting():
    return ApiKey.revoked_at.is_(None), or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > now())


def key_of(s: Session, key: str) -> ApiKey | None:
    """The row of a key that counts. The look-up is by digest, so its timing tells nothing about the key."""
    return s.scalar(select(ApiKey).where(ApiKey.digest == digest(key), *_counting()))


def owner_of(s: Session, key: str) -> str | None:
    found = key_of(s, key)
    return found and found.owner


def used(s: Session, idents: dict[str, float]) -> None:
    """Note when keys were last used (id -> seconds ago). A key's time only ever moves on."""
    for ident, ago in sorted(idents.items()):
        at = now() - ago
        later = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < at)
        s.execute(update(ApiKey).where(ApiKey.id == ident, later).values(last_used_at=at), execution_options=_APART)


def count_of(s: Session, owner: str) -> int:
    """How many keys of an owner count."""
    return s.scalar(select(func.count()).where(ApiKey.owner == owner, *_counting()))
