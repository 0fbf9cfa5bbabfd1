"""Rows of blobs. Bytes get their row before they get their place, so that a collection under way either sees the row or has ended.

    hold(session, sha256, size)   ->   storage.promote(key, sha256)   ->   refer(session, storage, {sha256: size}) and the row that refers to it
"""

from __future__ import annotations

from sqlalchemy import func
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.chunks import Chunked
from app.db import now
from app.errors import Unavailable
from app.models import Blob
from app.settled import settled
from app.storage import Storage


def hold(s: Session, sha256: str, size: int, chunks: bytes | None = None) -> None:
    """Make the blob's row, or take the mark of a collection off it; commit before the bytes are promoted. `chunks`: see `app.chunks`; once known they stay."""
    insert = (sqlite if s.get_bind().dialect.name == "sqlite" else postgresql).insert(Blob)
    kept = {"marked_at": None} | ({"chunks": func.coalesce(Blob.chunks, chunks)} if chunks else {})
    s.execute(insert.values(sha256=sha256, size=size, chunks=chunks).on_conflict_do_update(index_elements=[Blob.sha256], set_=kept))


def keep(storage: Storage, data: bytes) -> str:
    """What is in memory as a blob, row and bytes; returns its SHA-256. Whatever is to refer to it does so within `orphan_age`."""
    digest = Chunked()
    digest.update(data)
    sha256 = digest.hexdigest()
    settled(lambda s: hold(s, sha256, len(data), digest.chunks()))
    storage.put(sha256, [data], len(data))
    return sha256


def refer(s: Session, storage: Storage, sizes: dict[str, int]) -> None:
    """In the transaction that refers to these blobs (SHA-256 -> bytes): no collection takes them from now on, and none has taken their bytes before.
    In one order, so that no two transactions wait for each other.

    Raises:
        Unavailable: one has; it is for the caller to bring the bytes once more.
    """
    for sha256, size in sorted(sizes.items()):
        hold(s, sha256, size)
        if not storage.exists(sha256):
            raise Unavailable(f"the bytes of blob {sha256} were cleared away before anything referred to them; send them again")


def meet(s: Session, sha256: str, size: int) -> bool:
    """Make a row, marked, for bytes that were found without one. False: it has one now."""
    insert = (sqlite if s.get_bind().dialect.name == "sqlite" else postgresql).insert(Blob)
    made = insert.values(sha256=sha256, size=size, marked_at=now()).on_conflict_do_nothing()
    return s.execute(made.returning(Blob.sha256)).first() is not None
