"""Migrations, run when the service starts and before anything else uses the database.

All of them are one transaction, and one process runs them at a time: others wait for it, and then find nothing left to do.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, func, select, text

from app import db

_LOCK = int.from_bytes(b"mpmigrat")  # of PostgreSQL's advisory locks
FOLDER = Path(__file__).resolve().parents[1] / "migrations"


def config() -> Config:
    made = Config()
    made.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    return made


def upgrade(engine: Engine | None = None, revision: str = "head") -> None:
    """Bring the database to a revision; the newest by default."""
    _run(command.upgrade, engine, revision)


def downgrade(engine: Engine | None = None, revision: str = "base") -> None:
    _run(command.downgrade, engine, revision)


def _run(what, engine: Engine | None, revision: str) -> None:
    with (engine or db.engine()).begin() as connection:
        _alone(connection)
        made = config()
        made.attributes["connection"] = connection
        what(made, revision)


def _alone(connection: Connection) -> None:
    """Wait until no other process migrates, however long that takes it. On SQLite the transaction itself sees to that."""
    if connection.dialect.name == "postgresql":
        for name in ("lock_timeout", "statement_timeout"):
            connection.execute(text(f"set local {name} = 0"))
        connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
