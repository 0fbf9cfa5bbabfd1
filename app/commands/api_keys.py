"""`modelpress keys create | list | renew | revoke` and `modelpress audit`: for operators, in the database of MODELPRESS_DATABASE_URL."""

from __future__ import annotations

import re
import time
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from app.commands.options import Json, out, print_json
from app.home import private
from app.scopes import SCOPES, WRITE

# What speaks with the database is imported by the commands themselves: it takes longer than all others need to start.

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
Ident = Annotated[str, typer.Argument(metavar="ID", help="As `keys list` tells it.")]
Expires = Annotated[str | None, typer.Option("--expires", metavar="TIME", help="After so long (30d, 12h, 90m), or at a time (2027-01-31T12:00:00Z). Default: never.")]


def _operator() -> None:
    from app import audit

    private()  # SQLite's files are
    audit.actor.set((audit.OPERATOR, None))


def seconds(text: str) -> float:
    """Raises:
    typer.BadParameter: it is no length of time.
    """
    found = re.fullmatch(r"(\d{1,9})([smhd])", text, re.ASCII)
    if not found:
        raise typer.BadParameter(f"{text!r} is no length of time; write 30d, 12h, 90m or 60s")
    return int(found[1]) * _UNITS[found[2]]


def _end(text: str | None) -> float | None:
    from app.times import parse_rfc3339

    if text is None:
        return None
    try:
        at = parse_rfc3339(text) if "-" in text else time.time() + seconds(text)
    except ValueError as e:
        raise typer.BadParameter(str(e)) from None
    if at <= time.time():
        raise typer.BadParameter(f"{text} is over; choose a time to come")
    return at


def create_key(
    owner: Annotated[str, typer.Argument(help="Whose it is: the keys of one owner see the same artifacts and jobs. 1 to 64 characters.")],
    name: Annotated[str, typer.Option(help="A note for the list, up to 200 characters.")] = "",
    scope: Annotated[str, typer.Option(help=f"One of {', '.join(SCOPES)}; each includes the one before it.")] = WRITE,
    expires: Expires = None,
) -> None:
    """Print a new API key. This is the only time that it can be seen."""
    from app import api_keys
    from app.settled import reachable

    if not (owner.isprintable() and 1 <= len(owner) <= 64):
        raise typer.BadParameter(f"{owner!r} is no owner: 1 to 64 printable characters")
    if not (name.isprintable() and len(name) <= 200):
        raise typer.BadParameter(f"{name!r} is no note: up to 200 printable characters")
    if scope not in SCOPES:
        raise typer.BadParameter(f"{scope!r} is none of {', '.join(SCOPES)}")
    end = _end(expires)
    _operator()
    with reachable():
        typer.echo(api_keys.issue_key(owner, name, scope, end)[0])


def list_keys(as_json: Json = False) -> None:
    """All API keys by their ids, the newest first."""
    from app import api_keys
    from app.settled import reachable
    from app.times import rfc3339

    _operator()
    with reachable():
        found = api_keys.all_keys()
    times = ("created_at", "expires_at", "last_used_at", "revoked_at")
    rows = [{"id": k.id, "owner": k.owner, "name": k.name, "scope": k.scope} | {t: rfc3339(getattr(k, t)) for t in times} for k in found]
    _show(rows, ("owner", "name", "scope", *times), as_json)


def renew_key(
    ident: Ident,
    overlap: Annotated[str, typer.Option(metavar="TIME", help="For how long the old key goes on counting.")] = "24h",
    expires: Expires = None,
) -> None:
    """Print a new key of the same owner, name and scope. The old one counts for the overlap, so that its users can change over."""
    from app import api_keys
    from app.settled import reachable

    length, end = seconds(overlap), _end(expires)
    _operator()
    with reachable():
        typer.echo(api_keys.renew_key(ident, overlap=length, expires_at=end)[0])


def revoke_key(ident: Ident) -> None:
    """From now on the key opens nothing. What its owner has stays."""
    from app import api_keys
    from app.settled import reachable

    _operator()
    with reachable():
        api_keys.revoke_key(ident)


def audit(
    owner: Annotated[str | None, typer.Option(help="Only what is this owner's.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Entries, the newest ones.")] = 100,
    as_json: Json = False,
) -> None:
    """Who changed what, when, and by which key: the newest first."""
    from sqlalchemy import select

    from app.db import reading
    from app.models import Audit
    from app.settled import reachable
    from app.times import rfc3339

    _operator()
    query = select(Audit).where(*([Audit.owner == owner] if owner else [])).order_by(Audit.created_at.desc(), Audit.id.desc()).limit(limit)
    with reachable(), reading() as s:
        found = s.scalars(query).all()
    rows = [
        {"id": a.id, "at": rfc3339(a.created_at), "owner": a.owner, "actor": a.actor, "key": a.key_id, "action": a.action, "subject": a.subject, "details": a.details, "request_id": a.request_id}
        for a in found
    ]  # fmt: skip
    if as_json:
        return print_json(rows)
    table = Table("at", "owner", "actor", "key", "action", "subject")
    for row in rows:
        table.add_row(*(escape(row[c] or "") for c in ("at", "owner", "actor", "key", "action", "subject")))
    out.print(table)


def _show(rows: list[dict[str, Any]], columns: tuple[str, ...], as_json: bool) -> None:
    if as_json:
        return print_json(rows)
    table = Table(Column("id", min_width=36), *columns)
    for row in rows:
        table.add_row(*(escape(value or "") for value in row.values()))
    out.print(table)
