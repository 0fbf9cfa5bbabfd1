"""Public keys in the database, where every API process finds them: the sign process, whose disk they do not share, publishes them."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import NoReturn

from sqlalchemy import select
from sqlalchemy.orm import Session

from app import signing
from app.config import settings
from app.db import now, session
from app.models import PublicKey

log = logging.getLogger(__name__)


def publish(folder: Path) -> None:
    """Add the public keys of `folder` that are not there yet."""
    keys = signing.public_keys(folder)
    with session() as s, s.begin():
        known = set(s.scalars(select(PublicKey.id).where(PublicKey.id.in_(keys))))
        at = s.scalar(select(now()))
        for age, (ident, key) in enumerate(keys.items()):
            if ident not in known:  # a millisecond apart, so that keys published together keep their order
                s.add(PublicKey(id=ident, pem=signing.public_pem(key).decode(), created_at=at - age / 1000))


def keep_published(folder: Path) -> NoReturn:
    """Look again with every heartbeat: a rotation is seen before the first signature by the new key is asked about."""
    while True:
        try:
            publish(folder)
        except Exception as e:  # whatever the database raises: the next look may find it
            log.warning("the public keys could not be published: %s", e)
        time.sleep(settings().heartbeat)


def published(s: Session) -> list[signing.PublicKey]:
    """The newest first."""
    rows = s.scalars(select(PublicKey).order_by(PublicKey.created_at.desc(), PublicKey.id))
    return [signing.parse_public(row.pem.encode(), f"the published key {row.id}") for row in rows]
