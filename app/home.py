"""The home folder is its user's alone: it holds keys, and a database with secrets in it."""

from __future__ import annotations

import os
from pathlib import Path

from app.config import settings

_BESIDE = ("", "-wal", "-shm", "-journal")  # SQLite's files


def private() -> None:
    """Whatever this process and its children make can be read by their user alone."""
    os.umask(0o077)


def make() -> None:
    """The home folder and what is in it, where it is not there."""
    private()
    for folder in (settings().home, settings().scratch):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def close() -> None:
    """Shut others out of a home folder and a SQLite database that were there before.

    Raises:
        SystemExit: they are somebody else's.
    """
    kind, _, path = settings().database.partition(":///")
    try:
        settings().home.chmod(0o700)
        for end in _BESIDE if kind == "sqlite" else ():
            if (file := Path(path + end)).exists():
                file.chmod(0o600)
    except PermissionError as e:
        raise SystemExit(f"{e.filename} belongs to somebody else; choose another home folder with --home") from None
