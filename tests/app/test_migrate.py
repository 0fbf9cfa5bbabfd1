"""The migrations make exactly the tables of `app.models`, keep what is in them, and take them away again; on either kind of database."""

from __future__ import annotations

import multiprocessing

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from homes import KINDS, own_database
from sqlalchemy import MetaData, inspect, text

from app.db import Base, make_engine
from app.migrate import downgrade, upgrade
from app.models import ApiKey

HOSTS = 4
_together = multiprocessing.get_context("fork").Barrier(HOSTS)
SHA = "ab" * 32
ROWS = {
    "api_keys": {"id": "k", "owner": "o", "digest": SHA, "name": "première", "created_at": 1.5, "revoked_at": None},
    "blobs": {"sha256": SHA, "size": 1 << 40, "crc32": (1 << 32) - 1, "created_at": 1.5, "marked_at": None},
    "artifacts": {"id": "a", "owner": "o", "kind": "model", "format": "safetensors", "name": "m", "digest": SHA, "size": 1 << 40, "created_at": 1764228000.123456},
    "artifact_files": {"artifact_id": "a", "path": "sub/模型.safetensors", "size": 1 << 40, "sha256": SHA},
    "signatures": {"artifact_id": "a", "file": "model.sig", "size": 9, "sha256": SHA, "key_id": SHA},
    "jobs": {
        "id": "j", "owner": "o", "input_id": "a", "spec": {"recipe": {"steps": [{"method": "lossless"}]}, "tags": {"a\u0000b": "\ud800"}}, "queue": "compress.cpu",
        "state": "succeeded", "attempt": 2, "sign_attempt": 1, "fence": 3, "lease_until": None, "woken_at": 2.5, "progress": {"stage": "store"},
        "handoff": {"prefix": "tmp/j/2"}, "error": None, "report_sha256": SHA, "output_id": "a", "cache_key": SHA, "cached": False,
        "created_at": 1764228000.123456, "started_at": 1764228001.0, "finished_at": 1764228002.0,
    },
    "outbox": {"id": "w", "topic": "sign", "payload": {}, "created_at": 3.5},
}  # fmt: skip
"""What a service of the first release may hold."""


@pytest.fixture(params=KINDS)
def url(request, tmp_path):
    with own_database(tmp_path, request.param) as made:
        yield made


@pytest.fixture
def engine(url):
    made = make_engine(url)
    yield made
    made.dispose()


def test_migrations_and_models_agree(engine):
    upgrade(engine)
    with engine.connect() as c:
        assert compare_metadata(MigrationContext.configure(c, opts={"compare_type": True, "render_as_batch": True}), Base.metadata) == []
        for table in Base.metadata.tables.values():  # what the comparison leaves out: names of constraints, ON DELETE
            found = {(k["name"], k["options"].get("ondelete")) for k in inspect(c).get_foreign_keys(table.name)}
            assert found == {(k.name, k.ondelete) for k in table.foreign_key_constraints}
            assert inspect(c).get_pk_constraint(table.name)["name"] == table.primary_key.name


def test_a_second_start_keeps_the_data(engine):
    upgrade(engine)
    with engine.begin() as c:
        c.execute(ApiKey.__table__.insert().values(id="1", owner="o", digest="d", name=""))
    upgrade(engine)
    with engine.connect() as c:
        assert c.execute(ApiKey.__table__.select()).one().owner == "o"


def test_downgrade_takes_every_table_away(engine):
    upgrade(engine)
    downgrade(engine)
    assert inspect(engine).get_table_names() == ["alembic_version"]
    upgrade(engine)
    assert set(inspect(engine).get_table_names()) == {*Base.metadata.tables, "alembic_version"}


def held(engine) -> dict[str, dict]:
    """What stands in the columns of the first release."""
    tables = MetaData()
    tables.reflect(engine)
    with engine.connect() as c:
        return {name: {k: v for k, v in c.execute(tables.tables[name].select()).one()._mapping.items() if k in row} for name, row in ROWS.items()}


def test_rows_of_the_first_release_outlive_every_step(engine):
    upgrade(engine, "0001")
    tables = MetaData()
    tables.reflect(engine)
    with engine.begin() as c:
        for name, row in ROWS.items():
            c.execute(tables.tables[name].insert().values(**row))
    for step, revision in ((upgrade, "head"), (downgrade, "0001"), (upgrade, "head")):
        step(engine, revision)
        assert held(engine) == ROWS


def host(url: str) -> None:
    made = make_engine(url)
    _together.wait(30)
    upgrade(made)


def test_processes_that_start_at_once_migrate_once(engine, url):
    """Several API hosts on an empty database: each of them ends well."""
    with multiprocessing.get_context("fork").Pool(HOSTS) as pool:
        pool.map(host, [url] * HOSTS, chunksize=1)
    with engine.connect() as c:
        assert c.execute(text("select count(*) from alembic_version")).scalar_one() == 1
