"""Migrations, run when the service starts and before anything else uses the database."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine

from app import db

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
    with (engine or db.engine()).connect() as connection:
        made = config()
        made.attributes["connection"] = connection
        what(made, revision)
        connection.commit()
