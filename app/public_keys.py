"""Public keys in the database, where every API process finds them: the sign process, whose disk they do not share, publishes them."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import NoReturn

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.config import settings
from app.db import now, session
from app.errors import Unavailable
from app.key_states import Known, Validity
from app.models import PublicKey
from app.rotation import current, known_keys
from app.signing import key_id, parse_public, public_pem

log = logging.getLogger(__name__)


def publish(folder: Path) -> None:
    """Bring what the database knows of the keys of `folder` up to date. What was revoked there stays revoked."""
    held, known = _held(folder), known_keys(folder)  # the very first look makes the key
    with session() as s, s.begin():
        rows = {row.id: row for row in s.scalars(select(PublicKey).where(PublicKey.id.in_([key_id(k.key) for k in known])))}
        at = s.scalar(select(now()))
        for age, k in enumerate(known):
            ident = key_id(k.key)
            if (row := rows.get(ident)) is None:  # a millisecond apart, so that keys published together keep their order
                s.add(row := PublicKey(id=ident, pem=public_pem(k.key).decode(), created_at=at - age / 1000))
            row.signs_from, row.signs_until = k.validity.signs_from, k.validity.signs_until
            if k.validity.revoked_at is not None and row.revoked_at is None:
                row.revoked_at, row.revoked_because = k.validity.revoked_at, k.validity.revoked_because
            row.held_at = at if ident == held else None


def _held(folder: Path) -> str | None:
    """The id of the key that signs: it is there, and has just signed a probe."""
    try:
        return key_id(current(folder).public_key())
    except Unavailable as e:
        log.error("nothing can be signed: %s", e)
        return None


def keep_published(folder: Path) -> NoReturn:
    """Look again with every heartbeat: a rotation is seen before the first signature by the new key is asked about."""
    while True:
        try:
            publish(folder)
        except Exception as e:  # whatever the database raises: the next look may find it
            log.warning("the public keys could not be published: %s", e)
        time.sleep(settings().heartbeat)


def published(s: Session) -> list[Known]:
    """The newest first."""
    rows = s.scalars(select(PublicKey).order_by(PublicKey.created_at.desc(), PublicKey.id))
    return [Known(parse_public(r.pem.encode(), f"the published key {r.id}"), Validity(r.signs_from, r.signs_until, r.revoked_at, r.revoked_because)) for r in rows]


def held(s: Session) -> bool:
    """Whether a sign process has had a key that may sign, within the last lease."""
    recent = (PublicKey.held_at >= now() - settings().lease, PublicKey.revoked_at.is_(None))
    return s.scalar(select(PublicKey.id).where(*recent).limit(1)) is not None
