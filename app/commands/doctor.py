"""`modelpress doctor`: is everything there that a service, or a worker on this machine, needs?"""

from __future__ import annotations

import typer
from rich.markup import escape
from rich.table import Table

from app.commands.options import Json, out, print_json

_STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}


def doctor(as_json: Json = False) -> None:
    """Look at this machine and at what the settings name, with or without a running service. Exit code 1 where something has to be done."""
    from app.doctor import examine  # the broker's and the database's libraries take longer than all other commands need

    found = examine()
    if as_json:
        print_json([f._asdict() for f in found])
    else:
        table = Table("check", "", "found")
        for f in found:
            table.add_row(f.name, f"[{_STYLES[f.level]}]{f.level}[/]", escape(f.detail))
        out.print(table)
    raise typer.Exit(any(f.level == "fail" for f in found))
