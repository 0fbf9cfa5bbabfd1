"""Lists, the newest first, a page at a time. A cursor names the last item of a page, so items that come or go meanwhile shift nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

from fastapi import Query
from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session
from sqlalchemy.orm.interfaces import ORMOption

from app.api.requests import cursor, parse_cursor

Limit = Annotated[int, Query(ge=1, le=500, description="Items on a page.")]
Cursor = Annotated[str | None, Query(max_length=200, description="`next` of the page before.")]


def page(
    s: Session, model, owner: str, after: str | None, limit: int, *conditions, options: Sequence[ORMOption] = (), enough: Callable[[list], int] = len
) -> tuple[list, str | None]:
    """One owner's rows and the next page's cursor. Comparing (created_at, id) as one value lets an index lead straight to the place.

    Args:
        enough: how many of the rows that there are go on the page, one at least.
    """
    query = select(model).where(model.owner == owner, *conditions).options(*options)
    if after is not None:
        query = query.where(tuple_(model.created_at, model.id) < parse_cursor(after))
    rows = list(s.scalars(query.order_by(model.created_at.desc(), model.id.desc()).limit(limit + 1)))
    taken = rows[: enough(rows[:limit])]
    return taken, cursor(taken[-1].created_at, taken[-1].id) if len(rows) > len(taken) else None
