"""docker/healthy.py, beside a process that lives and one that does not."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from app import workers
from app.models import Worker

SCRIPT = Path(__file__).parents[2] / "docker" / "healthy.py"


def healthy(api, part: str, **more: str) -> subprocess.CompletedProcess:
    mine = {"MODELPRESS_HOME": str(api.home), "MODELPRESS_DATABASE_URL": api.engine.url.render_as_string(False), "MODELPRESS_PORT": str(api.port)}
    return subprocess.run([sys.executable, SCRIPT, part], env=os.environ | mine | more, cwd=SCRIPT.parents[1], capture_output=True, text=True, timeout=60)


def test_an_api_that_answers(api):
    assert healthy(api, "api").returncode == 0
    with socket.create_server(("127.0.0.1", 0)) as s:
        port = s.getsockname()[1]
    gone = healthy(api, "api", MODELPRESS_PORT=str(port))
    assert gone.returncode == 1 and "refused" in gone.stderr and "Traceback" not in gone.stderr


def test_a_worker_that_is_seen(api):
    assert healthy(api, "worker").returncode == 1
    ident = f"{socket.gethostname()[:60]}-1-abcdef"
    with api.session() as s, s.begin():
        workers.register(s, Worker(id=ident, queues=["compress.cpu"], device="cpu", memory=1, threads=1, jail={"holds": True}, version="0"))
    assert healthy(api, "worker").returncode == 0
    with api.session() as s, s.begin():
        workers.leave(s, ident)


def test_a_part_without_a_broker(api):
    alone = healthy(api, "sign", MODELPRESS_BROKER_URL="redis://127.0.0.1:1/0")
    assert alone.returncode == 1 and alone.stderr.strip()
