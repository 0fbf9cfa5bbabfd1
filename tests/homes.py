"""Home folders of tests, each with an empty database of its own, on either kind of database.

`MODELPRESS_TEST_DATABASE=postgresql` runs everything on PostgreSQL; without it, what is parametrised over KINDS runs on both and the rest on SQLite.
`MODELPRESS_TEST_STORAGE=s3` puts storage into a bucket.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import s3
from postgres import server
from sqlalchemy import Engine

from app.config import settings
from app.db import Base, engine, make_engine

KINDS = (asked,) if (asked := os.environ.get("MODELPRESS_TEST_DATABASE")) else ("sqlite", "postgresql")
DEFAULT = KINDS[0]


def new_database(folder: Path, kind: str = DEFAULT, fill: Callable[[Engine], None] | None = None) -> str:
    """The URL of a database: in `folder`, or on the shared server. Args: fill: makes its tables; by default it has none."""
    if kind == "sqlite":
        url = f"sqlite:///{folder / 'modelpress.db'}"
        if fill:
            _fill(url, fill)
        return url
    return server().url(server().create(like=_filled(fill)) if fill else server().create())


def _fill(url: str, fill: Callable[[Engine], None]) -> None:
    made = make_engine(url)
    fill(made)
    made.dispose()


@cache
def _filled(fill: Callable[[Engine], None]) -> str:
    """A database of the shared server to copy: copying takes a fifth of the time that making the tables does."""
    name = server().create()
    _fill(server().url(name), fill)
    return name


def new_storage(folder: Path) -> str:
    """The URL of an empty one: in `folder`, or a bucket."""
    return f"s3://{s3.server().bucket()}/store" if os.environ.get("MODELPRESS_TEST_STORAGE") == "s3" else f"file://{folder.resolve() / 'store'}"


@contextmanager
def own_database(folder: Path, kind: str = DEFAULT, via: int | None = None, fill: Callable[[Engine], None] | None = None) -> Iterator[str]:
    """The same, dropped at the end. `via`: the port of a proxy before PostgreSQL."""
    url = new_database(folder, kind, fill)
    try:
        yield url.replace(f":{server().port}/", f":{via}/") if via else url
    finally:
        if kind == "postgresql":
            server().drop(url.rpartition("/")[2])


@contextmanager
def own_home(folder: Path, kind: str = DEFAULT, via: int | None = None, **values: str) -> Iterator[Path]:
    """This process runs in `folder`, on an empty database with all tables, reached through the port `via`. `values` are further settings."""
    with own_database(folder, kind, via, Base.metadata.create_all) as url, pytest.MonkeyPatch.context() as patch:
        for name, value in {"home": str(folder), "database_url": url, "storage_url": new_storage(folder), **values}.items():
            patch.setenv(f"MODELPRESS_{name.upper()}", value)
        settings.cache_clear()
        engine.cache_clear()
        settings().scratch.mkdir(exist_ok=True)
        try:
            yield folder
        finally:
            engine().dispose()
            settings.cache_clear()
            engine.cache_clear()
