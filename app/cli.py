"""`modelpress`: the service, and what one does with it, on the command line. A command is a function of `app.commands`.

Exit codes: 0 done; 1 refused or failed, with one line on stderr; 2 usage; 3 no service answers; 130 interrupted.
`--json` prints one JSON document on stdout; progress bars and errors go to stderr.
"""

from __future__ import annotations

import sys

import typer

from app.commands.api_keys import audit, create_key, list_keys, renew_key, revoke_key
from app.commands.compare import compare
from app.commands.compress import compress
from app.commands.db import db
from app.commands.doctor import doctor
from app.commands.encryption import encryption
from app.commands.estimate import estimate
from app.commands.jobs import jobs
from app.commands.keys import keys, verify
from app.commands.parts import api, control, sign, webhooks, worker
from app.commands.restore import restore
from app.commands.up import up
from app.commands.upload import upload
from app.errors import ModelpressError, Unavailable

app = typer.Typer(name="modelpress", help=__doc__.splitlines()[0], no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
keys_group = typer.Typer(invoke_without_command=True, callback=keys)
for name, command in (("create", create_key), ("list", list_keys), ("renew", renew_key), ("revoke", revoke_key)):
    keys_group.command(name)(command)
for command in (up, upload, compress, compare, estimate, verify, restore, audit, doctor, api, worker, sign, control, webhooks):
    app.command()(command)
app.add_typer(jobs, name="jobs")
app.add_typer(keys_group, name="keys")
app.add_typer(db, name="db")
app.add_typer(encryption, name="encryption")


def main() -> None:
    try:
        app()
    except ModelpressError as e:
        at = f" (at {e.pointer})" if e.pointer else ""
        typer.echo(f"{e.title}: {e.detail}{at} [{e.type}]", err=True)
        sys.exit(3 if isinstance(e, Unavailable) else 1)


if __name__ == "__main__":
    main()
