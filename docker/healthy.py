"""HEALTHCHECK of a container: exits 0 when the part that runs in it is of use, else says why not.

    api                      it answers, by way of /healthz
    worker                   its row in the registry is fresh: it is written by a thread of its own, also while a job runs
    sign, control, webhooks  database and broker answer, from where it stands; when the process itself ends, so does the container
"""

from __future__ import annotations

import socket
import sys
import urllib.request
from pathlib import Path

PARTS = ("api", "worker", "sign", "control", "webhooks")


def part() -> str:
    """What runs here, by the command lines of its processes."""
    marks = {"app.main": "api", "worker.tasks": "worker", "app.sign": "sign", "app.control": "control", "app.webhooks": "webhooks"}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if found := [name for mark, name in marks.items() if mark in words]:
            return found[0]
    raise SystemExit("nothing of the service runs here")


def check(name: str) -> None:
    """Raises what is wrong."""
    if name == "api":
        from app.config import settings

        urllib.request.urlopen(f"http://127.0.0.1:{settings().port}/healthz", timeout=5).close()
        return
    from sqlalchemy import text

    from app import workers
    from app.db import session
    from app.queue import app as celery

    with session() as s:
        if name == "worker":
            if not any(w.id.startswith(f"{socket.gethostname()[:60]}-") for w in workers.live(s)):
                raise LookupError("this worker has not been seen for three heartbeats")
            return
        s.execute(text("select 1")).one()
    with celery.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=2)


if __name__ == "__main__":
    try:
        check(sys.argv[1] if len(sys.argv) > 1 else part())
    except Exception as e:
        raise SystemExit(f"{type(e).__name__}: {e}") from None
