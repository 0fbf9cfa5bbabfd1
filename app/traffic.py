"""What this process itself has done over HTTP: a line in the log for each request, and the registry that `/metrics` shows beside `app.metrics`. ASGI
middleware.

Labels are route templates and methods that we know: what a stranger typed is in none of them.
"""

from __future__ import annotations

import logging
import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)
POLLED = ("/healthz", "/readyz", "/metrics")  # asked every few seconds: their lines are told at DEBUG
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Traffic:
    """Counts of one process."""

    def __init__(self):
        self.registry = CollectorRegistry()
        of = {"registry": self.registry, "namespace": "modelpress"}
        self.requests = Counter("http_requests", "Requests that were answered, or broken off (status 499).", ("route", "method", "status"), **of)
        self.seconds = Histogram("http_request_seconds", "Seconds to the first byte of the answer.", ("route", "method"), buckets=SECONDS, **of)
        self.bytes = Counter("http_bytes", "Bytes of bodies.", ("direction",), **of)
        self.open = Gauge("http_requests_open", "Requests under way.", **of)


def route(scope: Scope) -> str:
    """The template that a request matched; long polls stand apart, they are slow on purpose."""
    found = getattr(scope.get("route"), "path", "none")
    return f"{found}?wait" if b"wait=" in scope.get("query_string", b"") and found != "none" else found


class Counted:
    """The middleware."""

    def __init__(self, app: ASGIApp, traffic: Traffic):
        self.app, self.traffic = app, traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        status, answered, start = 499, None, time.perf_counter()
        moved = {"in": 0, "out": 0}

        async def received() -> Message:
            message = await receive()
            moved["in"] += len(message.get("body", b""))
            return message

        async def sent(message: Message) -> None:
            nonlocal status, answered
            await send(message)
            if message["type"] == "http.response.start":
                status, answered = message["status"], time.perf_counter() - start
            else:
                moved["out"] += len(message.get("body", b""))

        self.traffic.open.inc()
        try:
            await self.app(scope, received, sent)
        finally:
            self.traffic.open.dec()
            method = scope["method"] if scope["method"] in METHODS else "other"
            self.traffic.requests.labels(route(scope), method, str(status)).inc()
            if answered is not None:
                self.traffic.seconds.labels(route(scope), method).observe(answered)
            for direction, nbytes in moved.items():
                self.traffic.bytes.labels(direction).inc(nbytes)
            told = {"method": method, "route": route(scope), "status": status, "ms": round(1000 * (time.perf_counter() - start), 1)}
            told |= {"bytes_in": moved["in"], "bytes_out": moved["out"]}
            log.log(logging.DEBUG if told["route"] in POLLED else logging.INFO, " ".join(map(str, told.values())), extra=told)
