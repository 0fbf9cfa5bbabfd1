"""`modelpress db`: the tables, and the API keys in them, for operators who start the processes themselves."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from app.commands.options import Json, out, print_json
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


@db.command("create-key")
def create_key(
    owner: Annotated[str, typer.Argument(help="Whose it is: the keys of one owner see the same artifacts and jobs. 1 to 64 characters.")],
    name: Annotated[str, typer.Option(help="A note for list-keys, up to 200 characters.")] = "",
) -> None:
    """Print a new API key. This is the only time that it can be seen."""
    from app import auth
    from app.settled import reachable

    if not (owner.isprintable() and 1 <= len(owner) <= 64):
        raise typer.BadParameter(f"{owner!r} is no owner: 1 to 64 printable characters")
    if not (name.isprintable() and len(name) <= 200):
        raise typer.BadParameter(f"{name!r} is no note: up to 200 printable characters")
    with reachable():
        typer.echo(auth.issue_key(owner, name))


@db.command("list-keys")
def list_keys(as_json: Json = False) -> None:
    """All API keys by their ids, the newest first."""
    from app import auth
    from app.times import rfc3339
    from app.settled import reachable

    with reachable():
        found = auth.all_keys()
    rows = [{"id": k.id, "owner": k.owner, "name": k.name, "created_at": rfc3339(k.created_at), "revoked_at": rfc3339(k.revoked_at)} for k in found]
    if as_json:
        return print_json(rows)
    table = Table(Column("id", min_width=36), "owner", "name", "created_at", "revoked_at")
    for row in rows:
        table.add_row(*(escape(value or "") for value in row.values()))
    out.print(table)


@db.command("revoke-key")
def revoke_key(ident: Annotated[str, typer.Argument(metavar="ID", help="As list-keys tells it.")]) -> None:
    """From now on the key opens nothing. What its owner has stays."""
    from app import auth
    from app.settled import reachable

    with reachable():
        auth.revoke_key(ident)
