"""Short-lived links to what an artifact or a job has to read, for browsers and for whoever shall have no key."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from pydantic import BaseModel, Field, StringConstraints

from app import audit, links
from app.api.requests import read_json
from app.api.schemas import body_schema
from app.auth import Owner
from app.db import reading, session
from app.errors import InvalidPath
from app.models import Artifact, Job
from app.owned import owned
from app.strict import Strict, validate
from app.times import rfc3339

router = APIRouter(prefix="/v1", tags=["links"])

OF_ARTIFACTS, OF_JOBS = ("archive", "signature", "provenance", "report"), ("events", "report")


class LinkRequest(Strict):
    """`path`: what the link opens, below the artifact or the job. `expires_in`: seconds."""

    path: Annotated[str, StringConstraints(min_length=1, max_length=1100)]
    expires_in: Annotated[int, Field(ge=1, le=links.LONGEST)] = 3600


class LinkView(BaseModel):
    """`url` is relative to the service, unless MODELPRESS_PUBLIC_URL says where that is. Whoever has it may read what it opens until `expires_at`."""

    url: str
    expires_at: str


@router.post("/artifacts/{ident}/link", status_code=201, openapi_extra=body_schema(LinkRequest))
async def link_to_artifact(ident: str, request: Request, owner: Owner) -> LinkView:
    """A link to `files/PATH`, `archive`, `signature`, `provenance` or `report` of an artifact. Deleting the artifact ends it."""
    asked = validate(LinkRequest, await read_json(request))
    return await run_in_threadpool(_artifact, ident, owner, asked)


@router.post("/jobs/{ident}/link", status_code=201, openapi_extra=body_schema(LinkRequest))
async def link_to_job(ident: str, request: Request, owner: Owner) -> LinkView:
    """A link to the `events` or the `report` of a job: `new EventSource(url)`."""
    asked = validate(LinkRequest, await read_json(request))
    return await run_in_threadpool(_job, ident, owner, asked)


def _artifact(ident: str, owner: str, asked: LinkRequest) -> LinkView:
    with reading() as s:
        artifact = owned(s, Artifact, ident, owner)
    files = {f"files/{f.path}" for f in artifact.files} | {f"files/{f.file}" for f in artifact.signatures}
    if asked.path not in files and asked.path not in OF_ARTIFACTS:
        raise InvalidPath(f"{asked.path!r} is nothing of this artifact; choose {', '.join(OF_ARTIFACTS)} or files/ and a path of it", pointer="/path")
    return _link(f"/v1/artifacts/{ident}/{asked.path}", ident, owner, asked)


def _job(ident: str, owner: str, asked: LinkRequest) -> LinkView:
    with reading() as s:
        owned(s, Job, ident, owner)
    if asked.path not in OF_JOBS:
        raise InvalidPath(f"{asked.path!r} is nothing of a job; choose {' or '.join(OF_JOBS)}", pointer="/path")
    return _link(f"/v1/jobs/{ident}/{asked.path}", ident, owner, asked)


def _link(path: str, ident: str, owner: str, asked: LinkRequest) -> LinkView:
    url, expires = links.make(path, owner, asked.expires_in)
    with session() as s, s.begin():
        audit.record(s, "link.create", owner, ident, seconds=asked.expires_in)
    return LinkView(url=url, expires_at=rfc3339(expires))
