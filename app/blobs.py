"""Rows of blobs. Bytes get their row before they get their place, so that a collection under way either sees the row or has ended.

    hold(session, sha256, size)   ->   storage.promote(key, sha256)   ->   the row that refers to it
"""

from __future__ import annotations

import hashlib

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.db import session
from app.models import Blob
from app.storage import Storage, blob_key


def hold(session: Session, sha256: str, size: int) -> None:
    """Make the blob's row, or take the mark of a collection off it; commit before the bytes are promoted."""
    insert = (sqlite if session.get_bind().dialect.name == "sqlite" else postgresql).insert(Blob)
    session.execute(insert.values(sha256=sha256, size=size).on_conflict_do_update(index_elements=[Blob.sha256], set_={"marked_at": None}))


def keep(storage: Storage, data: bytes) -> str:
    """What is in memory as a blob, row and bytes; returns its SHA-256. Whatever is to refer to it does so within `orphan_age`."""
    sha256 = hashlib.sha256(data).hexdigest()
    with session() as s, s.begin():
        hold(s, sha256, len(data))
    storage.put(blob_key(sha256), [data], len(data))
    return sha256
