"""Looking up what an owner asks for by id. A foreign id answers as an unknown one does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session
from sqlalchemy.orm.interfaces import ORMOption

from app.errors import NotFound
from app.models import ApiKey, Artifact, Comparison, Delivery, Job, Upload

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
Row = TypeVar("Row", ApiKey, Artifact, Comparison, Job, Delivery, Upload)


def find(s: Session, model: type[Row], ident: object, owner: str, lock: bool = False, options: Sequence[ORMOption] = ()) -> Row | None:
    """One query by id and owner. `lock`: it can be read but not deleted until the transaction ends."""
    if not isinstance(ident, str) or not _ID.fullmatch(ident):
        return None
    query = select(model).where(model.id == ident, model.owner == owner).options(*options)
    return s.scalar(query.with_for_update(read=True) if lock else query)


def owned(s: Session, model: type[Row], ident: object, owner: str, pointer: str | None = None, lock: bool = False, options: Sequence[ORMOption] = ()) -> Row:
    """Raises:
    NotFound: unknown, or somebody else's.
    """
    found = find(s, model, ident, owner, lock, options)
    if found is None:
        raise NotFound(f"there is no such {model.__name__.lower()}", pointer=pointer)
    return found
