"""The database: engine, sessions, and one clock.

SQLite runs in WAL mode and opens transactions with BEGIN IMMEDIATE, so that a read which leads to a write cannot be overtaken; those that only read
(`reading`) wait for nobody. On PostgreSQL transactions are READ COMMITTED: what must not be overtaken is one conditional update, or takes a lock. All
times are seconds since the epoch, as floats, by the database's own clock (`now()` below).
"""

from __future__ import annotations

from functools import cache

from sqlalchemy import URL, Engine, Float, MetaData, create_engine, event, make_url
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.sql.functions import FunctionElement

from app.config import settings

NAMES = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMES)


class now(FunctionElement):
    """Seconds since the epoch on the database's clock, as a float."""

    type = Float()
    inherit_cache = True


@compiles(now, "sqlite")
def _(element, compiler, **kw):
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _(element, compiler, **kw):
    return "extract(epoch from statement_timestamp())::double precision"  # stable, unlike clock_timestamp, so that indexes serve


# Milliseconds. Neither a client whose host has vanished nor a statement gone astray may hold locks for long.
_PATIENCE = {"statement_timeout": 60_000, "lock_timeout": 10_000, "idle_in_transaction_session_timeout": 60_000, "client_connection_check_interval": 10_000}
_CONNECT = {
    "application_name": "modelpress",
    "connect_timeout": 5,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,  # ms
    "options": " ".join(f"-c {name}={value}" for name, value in _PATIENCE.items()),
}


def _postgresql(url: URL) -> Engine:
    """`postgresql://`, as everybody writes it, is served by psycopg 3. What the URL itself says (`?sslmode=require&connect_timeout=2`) goes before."""
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    connect = {name: value for name, value in _CONNECT.items() if name not in url.query}
    pool = {"pool_size": 5, "max_overflow": 15, "pool_timeout": 10, "pool_recycle": 1800, "pool_pre_ping": True, "pool_use_lifo": True}
    return create_engine(url, connect_args=connect, hide_parameters=True, **pool)  # an error's text must not tell secrets


def make_engine(url: str) -> Engine:
    if not url.startswith("sqlite"):
        return _postgresql(make_url(url))
    engine = create_engine(url, connect_args={"timeout": 30, "check_same_thread": False}, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def _connect(connection, _record):
        connection.isolation_level = None  # leave BEGIN to the event below
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection):
        connection.exec_driver_sql("BEGIN" if connection.get_execution_options().get("reading") else "BEGIN IMMEDIATE")

    return engine


@cache
def engine() -> Engine:
    return make_engine(settings().database)


def session() -> Session:
    """A session for one short transaction: `with session() as s, s.begin(): ...`."""
    return Session(engine(), expire_on_commit=False)


def reading() -> Session:
    """A session that reads and never writes: `with reading() as s: ...`."""
    return Session(engine().execution_options(reading=True), expire_on_commit=False)
