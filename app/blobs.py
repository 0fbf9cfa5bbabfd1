"""Rows of blobs. Bytes get their row before they get their place, so that a collection under way either sees the row or has ended.

    hold(session, sha256, size)   ->   storage.promote(key, sha256)   ->   the row that refers to it
"""

from __future__ import annotations

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.models import Blob


def hold(session: Session, sha256: str, size: int) -> None:
    """Make the blob's row, or take the mark of a collection off it; commit before the bytes are promoted."""
    insert = (sqlite if session.get_bind().dialect.name == "sqlite" else postgresql).insert(Blob)
    session.execute(insert.values(sha256=sha256, size=size).on_conflict_do_update(index_elements=[Blob.sha256], set_={"marked_at": None}))
