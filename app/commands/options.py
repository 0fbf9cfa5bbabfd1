"""What commands share: options, where they print, and small questions about folders."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

WIDE = 200  # columns of what goes into a file or another program: nothing is cut off there
out, err = Console(highlight=False, width=None if sys.stdout.isatty() else WIDE), Console(stderr=True, highlight=False)

_URL = "The service. Default: the one of this machine. Its key: MODELPRESS_API_KEY, else HOME/api-key."
Url = Annotated[str | None, typer.Option("--url", envvar="MODELPRESS_URL", help=_URL)]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Into = Annotated[Path, typer.Option("--output", "-o", help="A folder, new or empty.")]


def check_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise typer.BadParameter(f"{folder} is not a new or empty folder", param_hint="--output")


def size_of(source: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    return sum(p.stat().st_size for p in source.rglob("*") if p.is_file()) if source.is_dir() else source.stat().st_size


def print_json(document: Any) -> None:
    typer.echo(json.dumps(document, indent=2))
