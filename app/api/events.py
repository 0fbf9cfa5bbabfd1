"""A job's events as they happen: server-sent events, which browsers reconnect to by themselves and take up where they were."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Annotated

import anyio
from fastapi import APIRouter, Header, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from sse_starlette import EventSourceResponse, ServerSentEvent

from app.db import reading
from app.errors import MalformedRequest
from app.links import Reader
from app.models import TERMINAL, Job, JobEvent
from app.owned import owned
from app.times import rfc3339
from app.watch import Watcher

router = APIRouter(prefix="/v1/jobs/{ident}/events", tags=["jobs"])

RETRY = 2000  # milliseconds after which a client that lost its connection comes again
GRACE = 1.0  # seconds that a stream may take to end by itself once the server stops
PING = 15  # seconds of silence that a comment breaks
ENDED = {204: {"description": "The job has ended, and all of its events are known: do not come again."}}


@router.get("", response_class=EventSourceResponse, responses=ENDED)
async def watch(
    ident: str,
    request: Request,
    owner: Reader,
    last_event_id: Annotated[str | None, Header(max_length=20, description="What comes after this event is told; a browser sends it by itself.")] = None,
    after: Annotated[str | None, Query(alias="last_event_id", max_length=20, description="The same, where no header can be sent.")] = None,
) -> Response:
    """`state`, `progress` and `log` events from the job's first to its last, each with JSON. The stream ends with the job."""
    seen = await run_in_threadpool(_begin, ident, owner, last_event_id or after or "0")
    if seen is None:
        return Response(status_code=204)
    stopping = anyio.Event()
    stream = _stream(request.app.state.watcher, ident, seen, stopping)
    return EventSourceResponse(stream, ping=PING, sep="\n", shutdown_event=stopping, shutdown_grace_period=GRACE)


def _begin(ident: str, owner: str, last_event_id: str) -> int | None:
    """The number of the last event that the client has seen; None when there is nothing more to tell.

    Raises:
        NotFound; MalformedRequest: it is the id of no event of this job.
    """
    with reading() as s:
        job = owned(s, Job, ident, owner)
    if not re.fullmatch(r"[0-9]+", last_event_id, re.ASCII) or int(last_event_id) > job.last_event:
        raise MalformedRequest(f"Last-Event-ID {last_event_id!r} is no event of this job; its events have the ids 1 to {job.last_event}")
    return None if job.state in TERMINAL and int(last_event_id) == job.last_event else int(last_event_id)


async def _stream(watcher: Watcher, ident: str, seen: int, stopping: anyio.Event) -> AsyncIterator[ServerSentEvent]:
    yield ServerSentEvent(retry=RETRY, sep="\n")
    ended = False
    while not ended and not stopping.is_set():
        rows, ended = await watcher.events(ident, seen, stopping.is_set)
        for row in rows:
            yield _sent(row)
            seen = row.seq


def _sent(row: JobEvent) -> ServerSentEvent:
    return ServerSentEvent(json.dumps(row.data | {"at": rfc3339(row.created_at)}, ensure_ascii=False), event=row.kind, id=str(row.seq), sep="\n")
