"""Uploads that go straight into the bucket: the service signs a URL for each part, and in the end reads every byte.

    begin -> the client PUTs the parts to the bucket -> complete -> the artifact, or a refusal that stays

Nothing counts that the client says. Which parts are there, and their tags, the store is asked; size, digest and format come from the bytes. The parts make
one multipart upload: once it is complete its URLs are void, so nobody can change what has been hashed. (Parts as objects of their own could be written
again for as long as their URLs live, and would have to be copied together through here.)

The row is the one of any upload (`app.resumable`): who holds its fence completes it, its refusal is kept, it expires.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, StringConstraints

from app.chunks import Chunked
from app.compose import Kind
from app.config import settings
from app.db import session
from app.errors import ChecksumMismatch, Conflict, NotFound
from app.formats import detect, header_bytes_needed, sniff
from app.models import Artifact, Upload
from app.resumable import alive, at_length, claim, create, finish, forget, in_session, seal, to_its_end, write
from app.staging import staging, whole_key
from app.storage import Storage
from app.strict import Strict

MAX_PARTS = 1000  # so that the answer with all URLs stays below a megabyte; S3 takes 10,000
MIN_PART = 64 << 20  # bytes
MIB = 1 << 20


class DirectUpload(Strict):
    """The JSON body of `POST /v1/direct-uploads`."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=4096)]
    size: Annotated[int, Field(ge=1)]
    kind: Kind | None = None
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None


@dataclass(frozen=True)
class Begun:
    """`urls`: one for each part, in order; they are good until `expires_at`."""

    id: str
    part_size: int
    urls: list[str]
    expires_at: float


def part_size(size: int) -> int:
    """Whole MiB; all parts but the last have it."""
    return max(MIN_PART, -(-size // (MAX_PARTS * MIB)) * MIB)


def _lengths(size: int) -> list[int]:
    part = part_size(size)
    return [min(part, size - at) for at in range(0, size, part)]


def begin(storage: Storage, owner: str, name: str, asked: DirectUpload) -> Begun:
    """Raises:
    QuotaExceeded, Unavailable.
    """
    upload = create(storage, owner=owner, name=name, kind=asked.kind or detect(name), length=asked.size, sha256=asked.sha256, metadata="")
    key, bucket = whole_key(upload.id), storage.place
    try:
        multipart = bucket.client.create(key)
        with session() as s, s.begin():
            write(s, upload.id, upload.fence, details=upload.details | {"multipart": multipart})
    except BaseException:
        forget(storage, Upload.id == upload.id)
        raise
    urls = [bucket.public.part_url(key, multipart, i, n, settings().upload_ttl) for i, n in enumerate(_lengths(asked.size), 1)]
    return Begun(upload.id, part_size(asked.size), urls, upload.expires_at)


async def complete(storage: Storage, upload: Upload) -> Artifact:
    """Raises:
    Locked: another request is at it. Conflict: a part is missing; it can still be sent. NotFound: the bytes are gone.
    InputRefused, ChecksumMismatch: for good.
    """
    if "multipart" not in upload.details:
        raise NotFound("there is no such direct upload; /v1/uploads has the others")
    fence = await in_session(claim, upload.id, 0, False)
    async with alive(upload.id, fence):
        made: list[Artifact] = []
        await to_its_end(staging(storage), upload.id, fence, at_length(lambda: made.append(_verified(storage, upload, fence))))
    return made[0]


def _verified(storage: Storage, upload: Upload, fence: int) -> Artifact:
    if "whole" in upload.details:  # an earlier request came as far as that
        return finish(storage, upload, fence)
    key = whole_key(upload.id)
    if not storage.exists(key):  # else one came as far as this
        _join(storage, key, upload)
    head = storage.read(key, 0, min(8, upload.length))
    found = sniff(upload.name, storage.read(key, 0, min(header_bytes_needed(head), upload.length)), upload.length, kind=upload.kind)
    digest, size = Chunked(), 0
    for batch in storage.stream(key):
        digest.update(batch)
        size += len(batch)
    sha256 = digest.hexdigest()
    if size != upload.length or upload.sha256 not in (None, sha256):
        announced = f"{upload.length} bytes" + (f" with SHA-256 {upload.sha256}" if upload.sha256 else "")
        raise ChecksumMismatch(f"{size} bytes with SHA-256 {sha256} arrived, and {announced} were announced")
    seal(upload, fence, key, digest, found)
    return finish(storage, upload, fence)


def _join(storage: Storage, key: str, upload: Upload) -> None:
    """The parts become one object, once all of them are there as they were planned."""
    multipart = upload.details["multipart"]
    try:
        there = {part["PartNumber"]: part for part in storage.place.client.parts(key, multipart)}
    except FileNotFoundError:
        raise NotFound("the upload's parts are gone; begin anew") from None
    wrong = [i for i, n in enumerate(_lengths(upload.length), 1) if i not in there or there[i]["Size"] != n]
    if wrong:
        raise Conflict(f"{len(wrong)} of {len(_lengths(upload.length))} parts are missing or have another length than was planned", missing=wrong)
    storage.place.client.complete(key, multipart, [{"PartNumber": i, "ETag": part["ETag"]} for i, part in sorted(there.items())])
