"""Whether the process lives, and whether the service can do its work. Neither needs an API key."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from app.findings import FAIL, WARN, Watch

router = APIRouter(tags=["health"])

HOME = """<!doctype html><html lang="en"><meta charset="utf-8"><title>modelpress</title>
<h1>modelpress</h1><p>Makes models smaller and proves what it did. The API is described at <a href="/docs">/docs</a>.</p>"""


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}


@router.get("/readyz", responses={503: {"description": "Not ready.", "content": {"application/json": {"schema": {"type": "object"}}}}})
def readyz(request: Request, response: Response) -> dict[str, Any]:
    """503 until the service can take work; each check says `ok` or what is missing. `degraded` names what only a part of the work needs."""
    watch: Watch = request.app.state.readiness
    found = watch.look()
    ready = all(f.level != FAIL for f in found)
    response.status_code = 200 if ready else 503
    checks = {f.name: f.detail if f.level == FAIL else "ok" for f in found}
    return {"status": "ready" if ready else "not ready", "checks": checks, "degraded": {f.name: f.detail for f in found if f.level == WARN}}


@router.get("/", response_class=HTMLResponse, include_in_schema=False)
async def home() -> str:
    return HOME
