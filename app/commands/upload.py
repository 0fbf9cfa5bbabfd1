"""`modelpress upload`: files and folders to the service, for jobs that come later."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.bars import bars, byte_bar
from app.client import Client
from app.commands.options import Json, Url, err, out, print_json, size_of
from app.models import KINDS


def upload(
    sources: Annotated[list[Path], typer.Argument(metavar="FILE_OR_FOLDER...", exists=True, help="Files, archives or folders; each becomes an artifact.")],
    kind: Annotated[str | None, typer.Option(help=f"One of: {', '.join(KINDS)}. Default: model.")] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Upload files and folders. What breaks off goes on where it was, also when the command is given again."""
    with Client(url) as client, bars(err) as shown:
        made = [client.upload(source, kind=kind, progress=byte_bar(shown, source.name[-15:], size_of(source))) for source in sources]
    if as_json:
        return print_json(made)
    for artifact in made:
        out.print(f"{artifact['id']}  {artifact['format']}, {artifact['size']:,} bytes, {artifact['name']}")
