"""`modelpress doctor`, as a process and check by check."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest
from homes import KINDS, own_home

from app import doctor, migrate, signing
from app.config import settings
from app.db import Base, engine
from app.findings import FAIL, OK, WARN, find
from app.storage import Storage


@pytest.fixture(params=KINDS)
def home(request, tmp_path):
    tmp_path.chmod(0o700)
    with own_home(tmp_path, request.param, port="9"):
        yield tmp_path


def level(check) -> tuple[str, str]:
    return find("x", check, frank=True)[1:]


def test_a_machine_where_nothing_runs_yet(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MODELPRESS_")} | {"MODELPRESS_HOME": str(tmp_path / "home"), "MODELPRESS_PORT": "9"}
    done = subprocess.run([sys.executable, "-m", "app.cli", "doctor", "--json"], env=environment, capture_output=True, text=True, timeout=120)
    found = {f["name"]: f for f in json.loads(done.stdout)}
    assert {f["level"] for f in found.values()} <= {OK, WARN} and done.returncode == 0, found
    assert "Landlock ABI" in found["jail"]["detail"] and "Redis server" in found["broker"]["detail"] and found["torch"]["detail"][0].isdigit()
    assert not (tmp_path / "home").exists()


def test_a_broker_that_is_away_fails(tmp_path):
    environment = os.environ | {"MODELPRESS_HOME": str(tmp_path), "MODELPRESS_BROKER_URL": "redis://127.0.0.1:1/0", "COLUMNS": "200"}
    done = subprocess.run([sys.executable, "-m", "app.cli", "doctor"], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "broker" in done.stdout and "fail" in done.stdout and "Traceback" not in done.stderr


def test_what_others_may_read_is_named(home):
    signing.open_key(settings().keys)
    (home / "api-key").write_text("mp_x")
    (home / "api-key").chmod(0o600)
    assert level(doctor.home)[0] == OK
    for path, mode in ((home, 0o750), (home / "api-key", 0o640), (settings().keys / "signing.pem", 0o604)):
        before = path.stat().st_mode & 0o777
        path.chmod(mode)
        found = level(doctor.home)
        assert found[0] == FAIL and str(path) in found[1] and "chmod" in found[1]
        path.chmod(before)
    assert level(doctor.home)[0] == OK


def test_the_database_and_its_clock(home):
    Base.metadata.drop_all(engine())
    assert level(doctor.database)[0] == FAIL
    migrate.upgrade()
    assert level(doctor.database)[0] == OK and level(doctor.clock)[0] == OK


def test_the_store_is_tried(home):
    Storage()
    assert level(doctor.storage) == (OK, "it can be written to and read from")
    assert [*Storage().list("tmp")] == []


def test_the_port(home, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(settings(), "port", taken.getsockname()[1])
        taken.close()
        assert level(doctor.port)[0] == OK


def test_a_service_that_is_not_ready_is_asked_what_is_missing(api, monkeypatch):
    monkeypatch.setattr(settings(), "port", api.port)
    found = level(doctor.port)
    assert found[0] == FAIL and "broker" in found[1] and "jail" in found[1]


def test_a_port_that_somebody_else_has(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(settings(), "port", taken.getsockname()[1])
        monkeypatch.setattr(doctor.httpx, "get", lambda *_, **__: (_ for _ in ()).throw(doctor.httpx.ReadTimeout("nothing")))
        found = level(doctor.port)
    assert found[0] == FAIL and "--port" in found[1]
