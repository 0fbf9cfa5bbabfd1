"""Who may read what a service keeps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from homes import own_home

from app import home

ROOT = Path(__file__).parents[2]


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.fixture
def careless():
    """As most systems start their processes."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_a_home_that_was_open_is_closed(tmp_path, careless):
    tmp_path.chmod(0o755)
    with own_home(tmp_path, "sqlite"):
        database = tmp_path / "modelpress.db"
        assert mode(database) == 0o644
        home.make()
        home.close()
        assert mode(tmp_path) == 0o700 and [mode(p) for p in tmp_path.glob("modelpress.db*")] == [0o600] * len(list(tmp_path.glob("modelpress.db*")))
        (tmp_path / "new").touch()
        assert mode(tmp_path / "new") == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_home_of_somebody_else_is_refused(tmp_path, careless):
    with own_home(tmp_path, "sqlite"):
        os.chown(tmp_path, 4242, 4242)
        code = "import os\nfrom app.home import close\nos.setuid(4243)\nclose()"
        tmp_path.chmod(0o777)
        told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert told.returncode == 1 and "belongs to somebody else" in told.stderr


def test_a_database_that_a_command_makes_is_closed(tmp_path, careless):
    tmp_path.chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if k != "MODELPRESS_DATABASE_URL"} | {"MODELPRESS_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-m", "app.cli", "db", "upgrade"], env=environment, cwd=ROOT, check=True)
    assert mode(tmp_path / "modelpress.db") == 0o600


def test_the_api_makes_nothing_that_others_can_read(api):
    assert "Umask:\t0077" in Path(f"/proc/{api.pid}/status").read_text()
