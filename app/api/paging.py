"""Lists, the newest first, a page at a time. A cursor names the last item of a page, so items that come or go meanwhile shift nothing."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from app.api.requests import cursor, parse_cursor

Limit = Annotated[int, Query(ge=1, le=500, description="Items on a page.")]
Cursor = Annotated[str | None, Query(max_length=200, description="`next` of the page before.")]


def page(s: Session, model, owner: str, after: str | None, limit: int, *conditions) -> tuple[list, str | None]:
    """One owner's rows and the next page's cursor."""
    query = select(model).where(model.owner == owner, *conditions)
    if after is not None:
        created_at, ident = parse_cursor(after)
        query = query.where(or_(model.created_at < created_at, and_(model.created_at == created_at, model.id < ident)))
    rows = list(s.scalars(query.order_by(model.created_at.desc(), model.id.desc()).limit(limit + 1)))
    more = len(rows) > limit
    rows = rows[:limit]
    return rows, cursor(rows[-1].created_at, rows[-1].id) if more else None
