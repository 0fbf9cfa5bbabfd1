"""Uploads that can be resumed: tus 1.0, with creation, creation-with-upload, expiration, checksum and termination.

A refusal is a problem document, with the status that tus asks for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from email.utils import formatdate
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from starlette.concurrency import run_in_threadpool
from fastapi.routing import APIRoute

from app import customer_keys, tus
from app.api import problems
from app.api.artifacts import storage_of
from app.api.customer_key import CustomerKeySent
from app.api.requests import announce, announced_sha256, clean_name, media_type
from app.api.views import UploadView, upload_view
from app.appending import append
from app.auth import Owner
from app.config import settings
from app.db import reading
from app.errors import MalformedRequest, ModelpressError, PayloadTooLarge, UnsupportedMediaType, error_of
from app.formats import KINDS, detect
from app.models import Upload
from app.resumable import check, create, forget, get
from app.storage import Storage

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


class TusRoute(APIRoute):
    """Says its version on every answer, refusals included."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def told(request: Request) -> Response:
            try:
                response = await handler(request)
            except ModelpressError as e:
                response = await problems.ours(request, e)
            response.headers["Tus-Resumable"] = tus.VERSION
            if response.status_code == 412:
                response.headers["Tus-Version"] = tus.VERSION
            return response

        return told


def speaks_tus(request: Request, _: Owner) -> None:
    tus.check_version(request.headers)


router = APIRouter(prefix="/v1/uploads", tags=["uploads"], route_class=TusRoute)
TUS = [Depends(speaks_tus)]


@router.options("", status_code=204)
@router.options("/{ident}", status_code=204, include_in_schema=False)
def capabilities() -> Response:
    """What of tus is spoken here."""
    headers = {"Tus-Version": tus.VERSION, "Tus-Extension": ",".join(tus.EXTENSIONS), "Tus-Max-Size": str(settings().max_upload_bytes)}
    return Response(status_code=204, headers=headers | {"Tus-Checksum-Algorithm": ",".join(tus.ALGORITHMS)})


@router.post("", status_code=201, dependencies=TUS)
async def begin(request: Request, owner: Owner, customer_key: CustomerKeySent) -> Response:
    """Announce a file: `Upload-Length`, and `Upload-Metadata` with `filename` and, if you like, `kind` and `sha256`. The body may hold its first bytes."""
    upload = await run_in_threadpool(_create, request, owner, customer_key)
    headers = {"Location": f"/v1/uploads/{upload.id}"}
    if upload.length == 0 or media_type(request) == tus.MEDIA_TYPE:
        announce(request, upload.length)
        upload = await _append(request, upload, 0, customer_key)
    return Response(status_code=201, headers=headers | _state(upload))


def _create(request: Request, owner: str, customer_key: bytes | None) -> Upload:
    if "upload-defer-length" in request.headers:
        raise MalformedRequest("Upload-Defer-Length is not taken; say the length by Upload-Length")
    length = tus.number(request.headers, "upload-length")
    if length > (limit := settings().max_upload_bytes):
        raise PayloadTooLarge(f"the upload has {length} bytes; at most {limit} are taken")
    header = request.headers.get("upload-metadata", "")
    said = tus.metadata(header)
    name = said.get("filename") or said.get("name")
    if not name:
        raise MalformedRequest("Upload-Metadata has no filename: the file's name, with its suffix, in base64")
    if (kind := said.get("kind") or detect(name)) not in KINDS:
        raise MalformedRequest(f"Upload-Metadata: kind {kind[:40]!r} is none of: {', '.join(KINDS)}")
    storage = storage_of(request).under(customer_keys.new(customer_key))
    return create(storage, owner=owner, name=clean_name(name), kind=kind, length=length, sha256=_sha256(request, said), metadata=header)


def _sha256(request: Request, said: dict[str, str]) -> str | None:
    """What the whole is announced to be, by the metadata or by Repr-Digest."""
    digest, other = said.get("sha256"), announced_sha256(request, ("repr-digest",))
    if digest is not None and not _SHA256.fullmatch(digest):
        raise MalformedRequest(f"Upload-Metadata: sha256 has 64 hex digits, {digest[:80]!r} has not")
    if digest and other and digest.lower() != other:
        raise MalformedRequest("Upload-Metadata and Repr-Digest announce different bytes")
    return digest.lower() if digest else other


@router.head("/{ident}", dependencies=TUS)
async def where(ident: str, owner: Owner) -> Response:
    """How far it is. Once it was refused: the refusal."""
    upload = await run_in_threadpool(_find, ident, owner)
    if upload.error is not None:
        raise error_of(upload.error)
    headers = {"Upload-Length": str(upload.length), "Cache-Control": "no-store"}
    return Response(headers=headers | ({"Upload-Metadata": said} if (said := upload.details["metadata"]) else {}) | _state(upload))


@router.get("/{ident}")
def get_upload(ident: str, owner: Owner, response: Response) -> UploadView:
    """The same for people, and what became of it: `artifact`, or `error`."""
    response.headers["Cache-Control"] = "no-store"
    return upload_view(_find(ident, owner))


@router.patch("/{ident}", status_code=204, dependencies=TUS)
async def go_on(ident: str, request: Request, owner: Owner, customer_key: CustomerKeySent) -> Response:
    """Bytes from `Upload-Offset` on. The last ones answer with `Upload-Artifact`, the artifact's id, or with why it is refused."""
    if media_type(request) != tus.MEDIA_TYPE:
        raise UnsupportedMediaType(f"Content-Type is {request.headers.get('content-type', '')[:100]!r}; send {tus.MEDIA_TYPE}")
    offset = tus.number(request.headers, "upload-offset")
    upload = await run_in_threadpool(_find, ident, owner, offset)
    announce(request, upload.length - offset)
    if offset < upload.length:
        upload = await _append(request, upload, offset, customer_key)
    return Response(status_code=204, headers=_state(upload))


@router.delete("/{ident}", status_code=204, dependencies=TUS)
def terminate(ident: str, request: Request, owner: Owner) -> Response:
    """Give it up. An artifact that it has become stays."""
    _find(ident, owner)
    forget(storage_of(request), Upload.id == ident)
    return Response(status_code=204)


def _find(ident: str, owner: str, offset: int | None = None) -> Upload:
    with reading() as s:
        found = get(s, ident, owner)
        if offset is not None:
            check(s, ident, offset)
        return found


async def _append(request: Request, upload: Upload, offset: int, customer_key: bytes | None) -> Upload:
    checksum = tus.checksum(request.headers.get("upload-checksum"))
    await append(await run_in_threadpool(_under, request, upload, customer_key), upload, offset, request.stream(), checksum)
    return await run_in_threadpool(_find, upload.id, upload.owner)


def _under(request: Request, upload: Upload, customer_key: bytes | None) -> Storage:
    with reading() as s:
        return storage_of(request).under(customer_keys.held(s, customer_key, upload.customer_key))


def _state(upload: Upload) -> dict[str, str]:
    told = {"Upload-Offset": str(upload.received), "Upload-Expires": formatdate(upload.expires_at, usegmt=True)}
    return told | ({"Upload-Artifact": upload.artifact_id} if upload.artifact_id else {})
