"""`modelpress encryption`: master keys of what is stored, identities for uploads."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from app.commands.options import out

encryption = typer.Typer(help="Master keys, under which what is stored is encrypted, and identities to which uploads are.", no_args_is_help=True)


@encryption.command("new-key")
def new_key(ident: Annotated[str, typer.Argument(metavar="ID", help="Its name, such as 2026a: 1 to 64 letters, digits, dots, dashes.")]) -> None:
    """Print a new master key as the line that MODELPRESS_MASTER_KEY_FILE wants. Put it first in that file (mode 0600), and keep a copy elsewhere."""
    from app.storage.masters import new_line

    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", ident, re.ASCII):
        raise typer.BadParameter(f"{ident!r} is no id: 1 to 64 letters, digits, dots, dashes")
    typer.echo(new_line(ident))


@encryption.command("new-identity")
def new_identity() -> None:
    """Print a new age identity for MODELPRESS_AGE_IDENTITY_FILE (mode 0600), for the API alone. To replace one, put the new one first; the old one still decrypts."""
    from app.age import new_identity

    typer.echo(new_identity(), nl=False)


@encryption.command("new-customer-key")
def new_customer_key() -> None:
    """Print a new key of one's own for MODELPRESS_CUSTOMER_KEY_FILE (mode 0600), for the command line and the client. Keep a copy: the service has none."""
    from app.customer_keys import new_line

    typer.echo(new_line())


@encryption.command("rewrap")
def rewrap() -> None:
    """Have the first master key wrap all data keys. No data are read or written; afterwards the other master keys may go."""
    from app.storage import Storage

    storage = Storage()
    if not storage.vault:
        raise typer.BadParameter("there is no master key: set MODELPRESS_MASTER_KEY_FILE")
    with storage.place.errors():
        count, written = storage.vault.rewrap()
    out.print(f"{count} data keys, {written} of them wrapped anew by {storage.vault.masters.current}")
