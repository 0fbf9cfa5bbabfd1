"""Uploads that go straight into the bucket, where the operator allows them (`MODELPRESS_PRESIGNED`)."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request, Response
from starlette.concurrency import run_in_threadpool
from pydantic import BaseModel

from app import direct
from app.api.artifacts import storage_of
from app.api.customer_key import CustomerKeySent
from app.api.requests import clean_name, read_json
from app.api.schemas import body_schema
from app.api.views import ArtifactView, artifact_view
from app.auth import Owner
from app.config import settings
from app.db import reading
from app.errors import CustomerKeyNotApplicable, NotFound, PayloadTooLarge
from app.models import Artifact, Upload
from app.owned import owned
from app.resumable import forget, get
from app.strict import validate
from app.times import rfc3339


def offered(_: Owner) -> None:
    if not settings().presigned:
        raise NotFound("this service takes no direct uploads; POST /v1/artifacts and /v1/uploads take the same files")


router = APIRouter(prefix="/v1/direct-uploads", tags=["uploads"], dependencies=[Depends(offered)])


class Part(BaseModel):
    number: int
    url: str


class DirectUploadView(BaseModel):
    """Each part is PUT to its URL, `part_size` bytes but for the last, with `headers`."""

    id: str
    part_size: int
    parts: list[Part]
    headers: dict[str, str] = {}
    expires_at: str


@router.post("", status_code=201, openapi_extra=body_schema(direct.DirectUpload))
async def begin(request: Request, response: Response, owner: Owner, customer_key: CustomerKeySent) -> DirectUploadView:
    """Announce a file. Its parts may be sent in any order and at once; then `complete`."""
    if customer_key is not None:
        raise CustomerKeyNotApplicable("what goes straight into the bucket is not encrypted under a key of yours; POST /v1/artifacts and /v1/uploads take one")
    asked = validate(direct.DirectUpload, await read_json(request))
    if asked.size > (limit := settings().max_upload_bytes):
        raise PayloadTooLarge(f"the upload has {asked.size} bytes; at most {limit} are taken", pointer="/size")
    begun = await run_in_threadpool(direct.begin, storage_of(request), owner, clean_name(asked.name), asked)
    response.headers["Location"] = f"/v1/direct-uploads/{begun.id}"
    parts = [Part(number=i, url=url) for i, url in enumerate(begun.urls, 1)]
    return DirectUploadView(id=begun.id, part_size=begun.part_size, parts=parts, expires_at=rfc3339(begun.expires_at))


@router.post("/{ident}/complete", status_code=201)
async def complete(ident: str, request: Request, response: Response, owner: Owner) -> ArtifactView:
    """All parts are sent: the service reads them, and answers with the artifact. It needs no list of them; a body is not read.

    A large file takes a while. Whoever loses the connection asks again, or looks at `GET /v1/uploads/{id}`.
    """
    upload, made = await run_in_threadpool(_find, ident, owner)
    made = made or await direct.complete(storage_of(request), upload)
    response.headers["Location"] = f"/v1/artifacts/{made.id}"
    return artifact_view(made)


@router.delete("/{ident}", status_code=204)
def abort(ident: str, request: Request, owner: Owner) -> Response:
    """Give it up. An artifact that it has become stays."""
    _find(ident, owner)
    forget(storage_of(request), Upload.id == ident)
    return Response(status_code=204)


def _find(ident: str, owner: str) -> tuple[Upload, Artifact | None]:
    """The upload, and the artifact that it has become."""
    with reading() as s:
        upload = get(s, ident, owner)
        return upload, owned(s, Artifact, upload.artifact_id, owner) if upload.artifact_id else None
