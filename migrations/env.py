"""Run by Alembic, on the connection that `app.migrate` gives it, else on the settings' database."""

from __future__ import annotations

from alembic import context

from app import models  # noqa: F401  (fills the metadata)
from app.db import Base, engine


def run(connection) -> None:
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True, compare_type=True, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()


if (given := context.config.attributes.get("connection")) is not None:
    run(given)
else:
    with engine().connect() as connection:
        run(connection)
