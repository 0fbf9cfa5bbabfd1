"""The one way to take a row that others want too."""

from __future__ import annotations

from typing import TypeVar

from sqlalchemy import Select, select, update
from sqlalchemy.orm import Session

from app.db import Base

Row = TypeVar("Row", bound=Base)


def take(s: Session, model: type[Row], eligible: Select, **values) -> Row | None:
    """Change the first eligible row: one UPDATE, which locks it first and skips rows that others hold (SQLite has one writer and needs no locks).

    The CTE is evaluated once; a subquery in its place may be evaluated again, and lock a second row, when the first was changed meanwhile.

    Args:
        eligible: ids of `model`, in their order.

    Returns:
        None when there is none that others do not hold just now.
    """
    chosen = eligible.limit(1).with_for_update(skip_locked=True).cte("chosen").prefix_with("MATERIALIZED", dialect="postgresql")
    statement = update(model).where(model.id.in_(select(chosen.c.id))).values(**values)
    return s.scalars(statement.returning(model), execution_options={"synchronize_session": False, "populate_existing": True}).first()
