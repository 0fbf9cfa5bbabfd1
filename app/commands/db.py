"""`modelpress db`: the tables, and the API keys in them, for operators who start the processes themselves."""

from __future__ import annotations

import typer

from app.commands.api_keys import create_key, list_keys, revoke_key
from app.home import private

db = typer.Typer(help="Tables and API keys, in the database of MODELPRESS_DATABASE_URL.", no_args_is_help=True)


@db.callback()
def _private() -> None:
    private()  # SQLite's files are


# What speaks with the database is imported by the commands themselves: it takes longer than all others need to start.


@db.command("upgrade")
def upgrade() -> None:
    """Bring the tables to this version's. Several at once do no harm."""
    from app import migrate
    from app.settled import reachable

    with reachable():
        migrate.upgrade()


for _name, _command in (("create-key", create_key), ("list-keys", list_keys), ("revoke-key", revoke_key)):  # the same as `modelpress keys create`, `list`, `revoke`
    db.command(_name)(_command)
