"""Home folders of tests, each with an empty database of its own, on either kind of database.

`MODELPRESS_TEST_DATABASE=postgresql` runs everything on PostgreSQL; without it, what is parametrised over KINDS runs on both and the rest on SQLite.
`MODELPRESS_TEST_STORAGE=s3` puts storage into a bucket.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import s3
from postgres import server

from app.config import settings
from app.db import Base, engine

KINDS = (asked,) if (asked := os.environ.get("MODELPRESS_TEST_DATABASE")) else ("sqlite", "postgresql")
DEFAULT = KINDS[0]


def new_database(folder: Path, kind: str = DEFAULT) -> str:
    """The URL of a database without tables: in `folder`, or on the shared server."""
    return f"sqlite:///{folder / 'modelpress.db'}" if kind == "sqlite" else server().url(server().create())


def new_storage(folder: Path) -> str:
    """The URL of an empty one: in `folder`, or a bucket."""
    return f"s3://{s3.server().bucket()}/store" if os.environ.get("MODELPRESS_TEST_STORAGE") == "s3" else f"file://{folder.resolve() / 'store'}"


@contextmanager
def empty_database(folder: Path, kind: str = DEFAULT, via: int | None = None) -> Iterator[str]:
    """The same, dropped at the end. `via`: the port of a proxy before PostgreSQL."""
    url = new_database(folder, kind)
    try:
        yield url.replace(f":{server().port}/", f":{via}/") if via else url
    finally:
        if kind == "postgresql":
            server().drop(url.rpartition("/")[2])


@contextmanager
def own_home(folder: Path, kind: str = DEFAULT, via: int | None = None, **values: str) -> Iterator[Path]:
    """This process runs in `folder`, on an empty database with all tables, reached through the port `via`. `values` are further settings."""
    with empty_database(folder, kind, via) as url, pytest.MonkeyPatch.context() as patch:
        for name, value in {"home": str(folder), "database_url": url, "storage_url": new_storage(folder), **values}.items():
            patch.setenv(f"MODELPRESS_{name.upper()}", value)
        settings.cache_clear()
        engine.cache_clear()
        Base.metadata.create_all(engine())
        settings().scratch.mkdir(exist_ok=True)
        try:
            yield folder
        finally:
            engine().dispose()
            settings.cache_clear()
            engine.cache_clear()
