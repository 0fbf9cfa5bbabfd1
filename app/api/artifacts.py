"""Artifacts: uploads, compositions and results. Their bytes are served by `app.api.files`."""

from __future__ import annotations

from contextlib import aclosing
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from sqlalchemy import func, select
from sqlalchemy.orm import Session, lazyload, selectinload

from app import audit, customer_keys, quotas
from app.age import ENDING, Encrypted
from app.api.customer_key import CustomerKeySent
from app.api.paging import Cursor, Limit, page
from app.api.requests import announce, announced_sha256, clean_name, media_type, read_json
from app.api.schemas import body_schema
from app.api.views import Artifacts, ArtifactView, artifact_view
from app.auth import Owner
from app.compose import Composition, check_paths, compose
from app.config import settings
from app.db import now, reading, session
from app.errors import MalformedRequest, NotFound, Unprocessable, UnsupportedMediaType
from app.formats import KINDS, detect
from app.models import Artifact, ArtifactFile, new_id
from app.owned import owned
from app.retention import remove
from app.settled import settled
from app.strict import Strict, validate
from app.storage import Storage
from app.times import parse_rfc3339
from app.upload import receive

router = APIRouter(prefix="/v1/artifacts", tags=["artifacts"])

PAGE_FILES = 20_000  # of all artifacts of a page
_COUNTED = 50  # artifacts at a time
RAW = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


def storage_of(request: Request) -> Storage:
    return request.app.state.storage


@router.post("", status_code=201, openapi_extra=body_schema(Composition, RAW))
async def create(
    request: Request,
    response: Response,
    owner: Owner,
    customer_key: CustomerKeySent,
    name: Annotated[str | None, Query(max_length=4096, description="The file's name. Without it the body is a composition in JSON.")] = None,
    kind: Annotated[str | None, Query(max_length=32, description=f"One of: {', '.join(KINDS)}. Default: images where the name is that of one, else model.")] = None,
) -> ArtifactView:
    """Upload a file: its bytes are the body, `Repr-Digest` is checked; X.age is decrypted on its way and becomes X. Or compose a folder of files uploaded before (JSON)."""
    if name is None and media_type(request) == "application/json":
        asked = validate(Composition, await read_json(request))
        made = await run_in_threadpool(_compose, owner, asked, customer_key)
    else:
        made = await _upload(request, owner, name, kind, customer_key)
    response.headers["Location"] = f"/v1/artifacts/{made.id}"
    return artifact_view(made)


def _compose(owner: str, asked: Composition, customer_key: bytes | None) -> Artifact:
    check_paths([p.path for p in asked.files])
    ident = new_id()
    return settled(lambda s: compose(s, owner, asked, ident, customer_key), lambda s: s.get(Artifact, ident))


async def _upload(request: Request, owner: str, name: str | None, kind: str | None, customer_key: bytes | None) -> Artifact:
    if media_type(request).startswith("multipart/"):
        raise UnsupportedMediaType("the file's bytes are the body: curl --data-binary @FILE, not a form")
    if not name:
        raise MalformedRequest("?name=FILE is missing: the file's name, with its suffix")
    plain = name[: -len(ENDING)] if name.endswith(ENDING) else name
    kind = kind or detect(plain)
    if kind not in KINDS:
        raise MalformedRequest(f"kind {kind!r} is none of: {', '.join(KINDS)}")
    limit = settings().max_upload_bytes
    length, sha256 = announce(request, limit), announced_sha256(request)
    await run_in_threadpool(_room, owner, length or 0)
    storage, body = storage_of(request), request.stream()
    keep = partial(receive, storage.under(customer_keys.new(customer_key)), owner=owner, name=clean_name(plain), kind=kind, limit=limit)
    if plain is name:
        return await keep(body, length=length, sha256=sha256)
    encrypted = Encrypted(body, request.app.state.identities, sha256)
    length = await encrypted.begin(length)
    async with aclosing(encrypted.plain()) as pieces:
        return await keep(pieces, length=length, sha256=None)


def _room(owner: str, length: int) -> None:
    with reading() as s:
        quotas.check_room(s, owner, length)


@router.get("")
def list_artifacts(owner: Owner, limit: Limit = 50, cursor: Cursor = None) -> Artifacts:
    """The newest first. A page ends early where its artifacts have very many files."""
    with reading() as s:
        rows, following = page(s, Artifact, owner, cursor, limit, options=[lazyload(Artifact.files)], enough=partial(_enough, s))
        query = select(Artifact).where(Artifact.id.in_([a.id for a in rows])).options(selectinload(Artifact.files))
        found = {a.id: a for a in s.scalars(query, execution_options={"populate_existing": True})}
    return Artifacts(items=[artifact_view(found[a.id]) for a in rows if a.id in found], next=following)  # one may have been deleted in between


def _enough(s: Session, rows: list[Artifact]) -> int:
    """How many of the rows, one at least, have no more than `PAGE_FILES` files in all. They are counted a few at a time, and not beyond that."""
    total = 0
    for i in range(0, len(rows), _COUNTED):
        some = [a.id for a in rows[i : i + _COUNTED]]
        query = select(ArtifactFile.artifact_id, func.count()).where(ArtifactFile.artifact_id.in_(some)).group_by(ArtifactFile.artifact_id)
        counts = dict(s.execute(query).all())
        for n, ident in enumerate(some, start=i):
            total += counts.get(ident, 0)
            if total > PAGE_FILES:
                return max(n, 1)
    return len(rows)


@router.get("/{ident}")
def get_artifact(ident: str, owner: Owner) -> ArtifactView:
    with reading() as s:
        return artifact_view(owned(s, Artifact, ident, owner))


class Lifetime(Strict):
    """The JSON body of `PATCH /v1/artifacts/{id}`: when the artifact is to be deleted (RFC 3339), or null: never."""

    expires_at: str | None


@router.patch("/{ident}", openapi_extra=body_schema(Lifetime))
async def change_artifact(ident: str, request: Request, owner: Owner) -> ArtifactView:
    """Set when it is deleted. While a job works on it, it stays all the same."""
    return await run_in_threadpool(_change, ident, owner, validate(Lifetime, await read_json(request)))


def _change(ident: str, owner: str, asked: Lifetime) -> ArtifactView:
    try:
        at = None if asked.expires_at is None else parse_rfc3339(asked.expires_at)
    except ValueError as e:
        raise Unprocessable(str(e), pointer="/expires_at") from None
    with session() as s, s.begin():
        found = owned(s, Artifact, ident, owner)
        if at is not None and at <= s.scalar(select(now())):
            raise Unprocessable(f"{asked.expires_at} is over; choose a time to come, or delete the artifact", pointer="/expires_at")
        found.expires_at = at
        audit.record(s, "artifact.change", owner, ident, expires_at=asked.expires_at)
        return artifact_view(found)


@router.delete("/{ident}", status_code=204)
def delete_artifact(ident: str, owner: Owner) -> None:
    """Its jobs stay. While one of them is under way it cannot be deleted."""
    with reading() as s:
        owned(s, Artifact, ident, owner)
    if not settled(lambda s: remove(s, ident), lambda s: None if s.get(Artifact, ident) else True):
        raise NotFound("there is no such artifact")
