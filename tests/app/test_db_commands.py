"""`modelpress db` on either kind of database: tables and API keys without `modelpress up`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from homes import KINDS, own_home
from sqlalchemy import inspect
from typer.testing import CliRunner

from app import api_keys
from app.cli import app
from app.db import Base, engine, session


def modelpress(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["db", *arguments])
    assert done.exit_code == code, done.output
    return done.output


@pytest.mark.parametrize("kind", KINDS)
def test_tables_and_keys(tmp_path, kind):
    with own_home(tmp_path, kind):
        Base.metadata.drop_all(engine())
        assert "modelpress db upgrade" in str(CliRunner().invoke(app, ["db", "list-keys"]).exception)
        modelpress("upgrade")
        assert {*Base.metadata.tables, "alembic_version"} == {*inspect(engine()).get_table_names()}
        key = modelpress("create-key", "laboratory", "--name", "of the laboratory").strip()
        assert re.fullmatch(r"mp_[\w-]{43}", key) and owner_of(key) == "laboratory"
        (listed,) = json.loads(modelpress("list-keys", "--json"))
        assert (listed["owner"], listed["name"], listed["revoked_at"]) == ("laboratory", "of the laboratory", None) and key not in str(listed)
        assert listed["id"] in modelpress("list-keys")
        modelpress("revoke-key", listed["id"])
        (revoked,) = json.loads(modelpress("list-keys", "--json"))
        modelpress("revoke-key", listed["id"])
        assert owner_of(key) is None and revoked["revoked_at"] and json.loads(modelpress("list-keys", "--json")) == [revoked]
        modelpress("revoke-key", "unknown", code=1)
        modelpress("create-key", "[bold]x[/bold]")
        assert "[bold]x" in modelpress("list-keys")


def owner_of(key: str) -> str | None:
    with session() as s:
        return api_keys.owner_of(s, key)


@pytest.mark.parametrize("owner", ["", "x" * 65, "a\nb"])
def test_an_owner_that_cannot_be_one_is_refused(owner):
    assert "64" in modelpress("create-key", owner, code=2)


def test_a_database_that_does_not_answer_is_said_in_a_line():
    variables = os.environ | {"MODELPRESS_DATABASE_URL": "postgresql://modelpress:secret@127.0.0.1:1/nowhere"}
    command = [sys.executable, "-m", "app.cli", "db", "create-key", "me"]
    told = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2])
    assert told.returncode == 3 and "does not answer" in told.stderr and "secret" not in told.stderr and "Traceback" not in told.stderr
