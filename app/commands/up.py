"""`modelpress up`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from app.config import settings


def up(
    port: Annotated[int | None, typer.Option(help="Where the API listens. Default: 8720.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes, which share the cores. Default: MODELPRESS_WORKERS, else 1.")] = None,
    home: Annotated[Path | None, typer.Option(help="Where everything is kept. Default: MODELPRESS_HOME, else ~/.modelpress.")] = None,
) -> None:
    """Start the service and everything that it needs; Ctrl-C stops all of it."""
    for name, value in (("MODELPRESS_PORT", port), ("MODELPRESS_HOME", home), ("MODELPRESS_WORKERS", workers)):
        if value is not None:
            os.environ[name] = str(value)  # the processes that `up` starts read it too
    settings.cache_clear()
    from app import embedded

    raise typer.Exit(embedded.up())
