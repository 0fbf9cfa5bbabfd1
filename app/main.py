"""The API. `python -m app.main` serves it; `create_app` is for whoever serves it otherwise (and then puts `app.http.Protocol` to use)."""

from __future__ import annotations

from importlib.metadata import version

import uvicorn
from fastapi import FastAPI

from app import logs, rates, readiness
from app.age import Identities
from app.api import api_keys, artifacts, catalog, comparisons, direct_uploads, estimates, events, files, health, jobs, keys, links, metrics, problems, schemas, uploads, usage, webhooks
from app.config import settings
from app.findings import Watch
from app.home import private
from app.http import MAX_HEADER_BYTES, Gate
from app.metrics import Service
from app.request_ids import Identified
from app.storage import Storage
from app.traffic import Counted, Traffic
from app.watch import Watcher

DESCRIPTION = "Makes models smaller and proves what it did. Every error is `application/problem+json` with a stable `type`."


def create_app() -> FastAPI:
    app = FastAPI(title="modelpress", version=version("modelpress"), description=DESCRIPTION, redoc_url=None, redirect_slashes=False, responses=problems.DOCUMENTED)
    app.state.storage = Storage()
    app.state.identities = Identities.configured()
    app.state.watcher = Watcher()
    app.state.readiness = Watch(readiness.checks(app.state.storage))
    app.state.traffic = Traffic()
    app.state.traffic.registry.register(Service())
    for module in (artifacts, files, uploads, direct_uploads, jobs, comparisons, estimates, events, links, keys, api_keys, usage, webhooks, catalog, health, metrics):
        app.include_router(module.router)
    problems.install(app)
    schemas.install(app)
    app.add_middleware(rates.Told)
    app.add_middleware(Gate)
    app.add_middleware(Counted, traffic=app.state.traffic)
    app.add_middleware(Identified)
    return app


def serve() -> None:
    private()
    logs.setup("api")
    uvicorn.run(
        "app.main:create_app",
        factory=True,
        host=settings().host,
        port=settings().port,
        http="app.http:Protocol",
        ws="none",
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=settings().api_grace,
        backlog=512,
        server_header=False,
        log_config=None,
        access_log=False,
        proxy_headers=False,
    )


if __name__ == "__main__":
    serve()
