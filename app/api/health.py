"""Whether the process lives, and whether the service can do its work. Neither needs an API key."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from sqlalchemy import text

from app import workers
from app.db import session
from app.public_keys import published
from app.queue import app as celery
from app.storage import Storage

router = APIRouter(tags=["health"])
log = logging.getLogger(__name__)

HOME = """<!doctype html><html lang="en"><meta charset="utf-8"><title>modelpress</title>
<h1>modelpress</h1><p>Makes models smaller and proves what it did. The API is described at <a href="/docs">/docs</a>.</p>"""


def database() -> None:
    with session() as s:
        s.execute(text("select version_num from alembic_version")).one()


def broker() -> None:
    with celery.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=2)


def key() -> None:
    with session() as s:
        if not published(s):
            raise FileNotFoundError("the sign process has not published its key yet")


def jail() -> None:
    with session() as s:
        found = [w.jail["holds"] for w in workers.live(s)]
    if not found:
        raise ProcessLookupError("no worker is there")
    if not any(found):
        raise PermissionError("no worker's jail holds on its machine")


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}


@router.get("/readyz")
def readyz(request: Request, response: Response) -> dict[str, Any]:
    """503 until database, broker, storage, key and jail all hold; each is named."""
    storage: Storage = request.app.state.storage
    checks = {}
    for name, check in (("database", database), ("broker", broker), ("storage", storage.check), ("key", key), ("jail", jail)):
        try:
            check()
            checks[name] = "ok"
        except Exception as e:  # whatever it is, it is the answer
            log.info("not ready: %s: %s", name, e)
            checks[name] = type(e).__name__
    ready = all(state == "ok" for state in checks.values())
    response.status_code = 200 if ready else 503
    return {"status": "ready" if ready else "not ready", "checks": checks}


@router.get("/", response_class=HTMLResponse, include_in_schema=False)
async def home() -> str:
    return HOME
