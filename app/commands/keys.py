"""`modelpress verify` and `modelpress keys`: signatures, and the public keys that they are checked with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app import rotation
from app.bars import bars, byte_bar
from app.client import Client
from app.commands.api_keys import seconds
from app.commands.options import Json, Url, err, out, print_json
from app.config import settings
from app.errors import NotFound
from app.key_states import CURRENT, document, parse_keys, revocations
from app.rotation import known_keys
from app.verify import verify_folder

_KEY = "A public key (PEM), or a saved answer of GET /v1/keys, which also tells revoked ones; may be repeated. Default: the keys of the home folder."


def verify(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="A downloaded result with its model.sig.")],
    key: Annotated[list[Path] | None, typer.Option(exists=True, dir_okay=False, help=_KEY)] = None,
    as_json: Json = False,
) -> None:
    """Check every file of a result against its signatures, offline."""
    if key:
        parsed = [parse_keys(p.read_bytes(), str(p)) for p in key]
        keys, revoked = [k for found, _ in parsed for k in found], {ident: why for _, found in parsed for ident, why in found.items()}
    else:
        known = known_keys(settings().keys)
        keys, revoked = [k.key for k in known], revocations(known)
    if not keys:
        raise NotFound(f"{settings().keys} holds no public key: give one with --key (`modelpress keys --pem` prints it)")
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    with bars(err) as shown:
        done = verify_folder(folder, keys, byte_bar(shown, "verify", size), revoked)
    if as_json:
        return print_json({"verified": True, "key_id": done.key_id, "checked": done.checked, "files": done.files})
    out.print(f"{folder}: {len(done.files)} files hold ({', '.join(done.checked)}), signed by key {done.key_id}")


def keys(
    context: typer.Context,
    pem: Annotated[bool, typer.Option("--pem", help="Print the newest key as PEM, for openssl and model_signing.")] = False,
    rotate: Annotated[bool, typer.Option("--rotate", help="Replace the signing key in the home folder; the old public keys stay.")] = False,
    overlap: Annotated[str | None, typer.Option(help="With --rotate: the new key is published now and signs after so long, as 7d.")] = None,
    revoke: Annotated[str | None, typer.Option(help="Take back everything that a signing key of the home folder has signed: its id, or the start of it.")] = None,
    reason: Annotated[str, typer.Option(help="With --revoke: why, for whoever verifies.")] = "",
    url: Url = None,
    as_json: Json = False,
) -> None:
    """The public keys of the service, the newest first. With a command: the API keys (`create`, `list`, `renew`, `revoke`)."""
    if context.invoked_subcommand:
        return
    if revoke:
        rotation.revoke(settings().keys, revoke, reason)
    if rotate:
        rotation.rotate(settings().keys, seconds(overlap) if overlap else 0.0)
    if rotate or revoke:
        told = document(known_keys(settings().keys))
    else:
        with Client(url) as client:
            told = client.key_document()
    if pem:
        signing_now = [k for k in told["keys"] if k.get("status", CURRENT) == CURRENT]
        return typer.echo((signing_now or told["keys"])[0]["pem"], nl=False)
    print_json(told) if as_json else out.print("\n".join(f"{k['kid']}  {k.get('status', CURRENT)}" for k in told["keys"]) + (f"\n{told['age']}  encrypts uploads (age)" if told.get("age") else ""))
