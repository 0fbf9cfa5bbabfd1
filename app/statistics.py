"""What calibration has found, kept for the next job that asks the same of the same model and data: a blob, and a row that says what it depends on.

A row goes when nobody has asked for it for KEPT seconds, and its bytes with the collections that follow. They are nobody's to download.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from sqlalchemy import delete
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.blobs import hold, refer
from app.db import now
from app.libraries import versions
from app.models import Statistic
from app.storage import Storage

KEPT = 7 * 24 * 3600.0  # seconds
_DEPENDS = ("calibration", "labels")  # of what a job brings


def key(owner: str, input_digest: str, companions: Mapping[str, str], seed: int, backend: str) -> str:
    """What statistics depend on, as one digest.

    Args:
        companions: role -> artifact digest of what the job brings.
        backend: the class of device that computes them.
    """
    parts = {"owner": owner, "input": input_digest, "seed": seed, "versions": versions(), "backend": backend}
    parts |= {role: companions.get(role) for role in _DEPENDS}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def find(s: Session, key: str) -> str | None:
    """The blob that is kept under a key, held, so that no collection takes it while it is read; None when there is none."""
    row = s.get(Statistic, key)
    if row is None:
        return None
    row.used_at = now()
    hold(s, row.sha256, row.size)
    return row.sha256


def keep(s: Session, storage: Storage, key: str, owner: str, sha256: str, size: int) -> None:
    """Keep a blob that is there under a key, in the place of what was kept before.

    Raises:
        Unavailable: its bytes were cleared away in between.
    """
    refer(s, storage, {sha256: size})
    insert = (sqlite if s.get_bind().dialect.name == "sqlite" else postgresql).insert(Statistic)
    values = {"sha256": sha256, "size": size, "used_at": now()}
    s.execute(insert.values(key=key, owner=owner, **values).on_conflict_do_update(index_elements=[Statistic.key], set_=values))


def forget(s: Session, key: str) -> None:
    s.execute(delete(Statistic).where(Statistic.key == key))
