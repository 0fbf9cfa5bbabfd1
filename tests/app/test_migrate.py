"""The migrations make exactly the tables of `app.models`, and take them away again."""

from __future__ import annotations

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect

from app.db import Base, make_engine
from app.migrate import downgrade, upgrade
from app.models import ApiKey


@pytest.fixture
def engine(tmp_path):
    made = make_engine(f"sqlite:///{tmp_path / 'x.db'}")
    yield made
    made.dispose()


def test_migrations_and_models_agree(engine):
    upgrade(engine)
    with engine.connect() as c:
        assert compare_metadata(MigrationContext.configure(c, opts={"compare_type": True, "render_as_batch": True}), Base.metadata) == []
        for table in Base.metadata.tables.values():  # SQLite's own reflection of what the comparison leaves out: names of constraints, ON DELETE
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
