"""`modelpress upload`: files and folders to the service, for jobs that come later."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.bars import bars, byte_bar
from app.client import Client
from app.commands.options import Json, Url, err, out, print_json, size_of
from app.errors import Unprocessable
from app.formats import KINDS


def upload(
    sources: Annotated[list[Path], typer.Argument(metavar="FILE_OR_FOLDER...", exists=True, help="Files, archives or folders; each becomes an artifact.")],
    kind: Annotated[str | None, typer.Option(help=f"One of: {', '.join(KINDS)}. Default: model.")] = None,
    encrypt: Annotated[bool, typer.Option("--encrypt", help="Encrypt to the service with age before anything leaves this machine; what breaks off starts anew.")] = False,
    recipient: Annotated[str | None, typer.Option(metavar="age1...", help="With --encrypt: to whom. Default: the recipient that the service tells.")] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Upload files and folders. What breaks off goes on where it was, also when the command is given again."""
    if recipient and not encrypt:
        raise typer.BadParameter("--recipient goes with --encrypt")
    with Client(url) as client, bars(err) as shown:
        if encrypt and recipient is None and (recipient := client.key_document().get("age")) is None:
            raise Unprocessable("this service has no age identity, so nothing can be encrypted for it")
        to = {"recipient": recipient} if encrypt else {}
        made = [client.upload(source, kind=kind, **to, progress=byte_bar(shown, source.name[-15:], size_of(source))) for source in sources]
    if as_json:
        return print_json(made)
    for artifact in made:
        out.print(f"{artifact['id']}  {artifact['format']}, {artifact['size']:,} bytes, {artifact['name']}")
