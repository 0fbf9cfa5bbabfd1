"""`modelpress verify` and `modelpress keys`: signatures, and the public keys that they are checked with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app import signing
from app.bars import bars, byte_bar
from app.client import Client
from app.commands.options import Json, Url, err, out, print_json
from app.config import settings
from app.errors import NotFound
from app.verify import verify_folder

_KEY = "A public key (PEM); may be repeated. Default: the keys of the home folder."


def verify(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="A downloaded result with its model.sig.")],
    key: Annotated[list[Path] | None, typer.Option(exists=True, dir_okay=False, help=_KEY)] = None,
    as_json: Json = False,
) -> None:
    """Check every file of a result against its signatures, offline."""
    keys = [signing.parse_public(p.read_bytes(), str(p)) for p in key] if key else list(signing.public_keys(settings().keys).values())
    if not keys:
        raise NotFound(f"{settings().keys} holds no public key: give one with --key (`modelpress keys --pem` prints it)")
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    with bars(err) as shown:
        done = verify_folder(folder, keys, byte_bar(shown, "verify", size))
    if as_json:
        return print_json({"verified": True, "key_id": done.key_id, "checked": done.checked, "files": done.files})
    out.print(f"{folder}: {len(done.files)} files hold ({', '.join(done.checked)}), signed by key {done.key_id}")


def keys(
    context: typer.Context,
    pem: Annotated[bool, typer.Option("--pem", help="Print the newest key as PEM, for openssl and model_signing.")] = False,
    rotate: Annotated[bool, typer.Option("--rotate", help="Replace the signing key in the home folder; the old public keys stay.")] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """The public keys of the service, the newest first. With a command: the API keys (`create`, `list`, `renew`, `revoke`)."""
    if context.invoked_subcommand:
        return
    if rotate:
        signing.rotate(settings().keys)
        found = list(signing.public_keys(settings().keys).values())
    else:
        with Client(url) as client:
            found = client.public_keys()
    if pem:
        return typer.echo(signing.public_pem(found[0]), nl=False)
    print_json(signing.jwks(found)) if as_json else out.print("\n".join(map(signing.key_id, found)))
