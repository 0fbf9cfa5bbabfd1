"""The bytes of artifacts: their files, what stands beside them, and all of it as one archive."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from app.api.artifacts import storage_of
from app.api.customer_key import CustomerKeySent
from app.api.reports import send_report
from app import customer_keys
from app.archive import archive_of
from app.db import reading
from app.errors import NotFound
from app.links import Reader
from app.models import Artifact, ArtifactFile
from app.owned import owned
from app.quarantine import check
from app.storage import Storage
from app.serve import disposition, send, send_blob

router = APIRouter(prefix="/v1/artifacts/{ident}", tags=["artifacts"])
BYTES = {200: {"content": {"application/octet-stream": {}}, "description": "The bytes."}, 206: {"description": "A range of them."}}


def _get_and_head(path: str):
    def route(endpoint):
        router.get(path, response_class=Response, responses=BYTES)(endpoint)
        router.head(path, response_class=Response, include_in_schema=False)(endpoint)
        return endpoint

    return route


def _artifact(ident: str, owner: str) -> Artifact:
    """Raises:
    NotFound, Quarantined.
    """
    with reading() as s:
        found = owned(s, Artifact, ident, owner)
    check(found)
    return found


def _opened(request: Request, artifact: Artifact, customer_key: bytes | None) -> Storage:
    with reading() as s:
        return customer_keys.opened(s, storage_of(request), customer_key, artifact)


def _sidecar(artifact: Artifact, name: str):
    found = next((f for f in artifact.signatures if f.file == name), None)
    if found is None:
        raise NotFound(f"this artifact has no {name}: it is not a result" if not artifact.signatures else f"this artifact has no {name}")
    return found


@_get_and_head("/files/{path:path}")
async def get_file(ident: str, path: str, request: Request, owner: Reader, customer_key: CustomerKeySent) -> Response:
    """A file, or one of SHA256SUMS, SHA256SUMS.sig, model.sig, provenance.json, report.json where no file has that name. One range; ETag is the SHA-256."""
    artifact = await run_in_threadpool(_artifact, ident, owner)
    file = next((f for f in artifact.files if f.path == path), None) or next((f for f in artifact.signatures if f.file == path), None)
    if file is None:
        raise NotFound("this artifact has no such file")
    storage = await run_in_threadpool(_opened, request, artifact, customer_key) if isinstance(file, ArtifactFile) else storage_of(request).of(owner)
    return await send_blob(request, storage, file.sha256, file.size, path.rsplit("/", 1)[-1])


@_get_and_head("/signature")
async def get_signature(ident: str, request: Request, owner: Reader) -> Response:
    """The Sigstore bundle over all files."""
    file = _sidecar(await run_in_threadpool(_artifact, ident, owner), "model.sig")
    return await send_blob(request, storage_of(request).of(owner), file.sha256, file.size, "model.sig", "application/vnd.dev.sigstore.bundle.v0.3+json")


@_get_and_head("/provenance")
async def get_provenance(ident: str, request: Request, owner: Reader) -> Response:
    """How it was made: an in-toto statement in a DSSE envelope."""
    file = _sidecar(await run_in_threadpool(_artifact, ident, owner), "provenance.json")
    return await send_blob(request, storage_of(request).of(owner), file.sha256, file.size, "provenance.json", "application/vnd.in-toto+json")


@router.get("/report", response_class=Response)
async def get_report(ident: str, request: Request, owner: Reader) -> Response:
    """What became of every tensor, and the errors: JSON, or HTML for browsers."""
    file = _sidecar(await run_in_threadpool(_artifact, ident, owner), "report.json")
    return await send_report(request, storage_of(request).of(owner), file.sha256, file.size)


@_get_and_head("/archive")
async def get_archive(ident: str, request: Request, owner: Reader, customer_key: CustomerKeySent) -> Response:
    """All files with signature and provenance as one stored zip. Its bytes are always the same, so ranges work."""
    artifact = await run_in_threadpool(_artifact, ident, owner)
    archive = await archive_of(artifact, await run_in_threadpool(_opened, request, artifact, customer_key))
    return await send(request, archive.etag, archive.size, archive.read, {"Content-Disposition": disposition(f"{artifact.name}.zip")}, "application/zip")
