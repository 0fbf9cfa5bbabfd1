"""Uploads that can be resumed: who may write, up to where, and what becomes of the bytes once all are there.

    create -> claim, write, ... (`app.appending`) -> seal -> finish: the artifact, or a refusal that stays

Whoever writes claims the upload: a new fence and a lease, as with a job. Every write to the row is `WHERE fence = :f`, so that of several writers one
goes on. `received` moves only after the bytes are on disk, and to the full length only in the transaction that makes the artifact. Before the bytes move to their place
the upload is sealed: where they are and their digest stand in the row, so that what breaks off after that needs no byte again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import NoReturn, TypeVar

from anyio import CapacityLimiter, to_thread
from sqlalchemy import delete, func, or_, select, true, update
from sqlalchemy.orm import Session

from app import audit, customer_keys, quotas
from app.age import ENDING
from app.blobs import hold
from app.chunks import Chunked
from app.config import settings
from app.db import now, session
from app.errors import ChecksumMismatch, InputRefused, Locked, ModelpressError, NotFound, OffsetMismatch, QuotaExceeded, Unprocessable, error_of
from app.models import Artifact, Upload
from app.owned import owned
from app.staging import LOCKED, Staging, staging, whole_key
from app.storage import Storage
from app.upload import keep

_APART = {"synchronize_session": False}
_AT_LENGTH = CapacityLimiter(2)  # threads of their own, so that hashing whole files holds up nobody else's bytes and leases
T = TypeVar("T")
log = logging.getLogger(__name__)


def create(storage: Storage, *, owner: str, name: str, kind: str, length: int, sha256: str | None, metadata: str) -> Upload:
    """A new upload, without a byte; under the uploader's own key, where `storage` is.

    Raises:
        Unprocessable: it is encrypted. QuotaExceeded: too many of the owner's are under way. StorageQuotaExceeded.
    """
    if name.endswith(ENDING):
        raise Unprocessable(f"{name}: what is encrypted with age is decrypted while it arrives, and cannot be resumed; send it as the body of POST /v1/artifacts?name={name}")
    made = Upload(owner=owner, name=name, kind=kind, length=length, sha256=sha256, details={"metadata": metadata}, customer_key=storage.key and storage.key.ident)
    made.expires_at = now() + settings().upload_ttl
    with session() as s, s.begin():
        quotas.alone(s, owner)
        quotas.check_room(s, owner, length)
        under_way = (Upload.owner == owner, Upload.received < Upload.length, Upload.error.is_(None), Upload.expires_at > now())
        if (count := s.scalar(select(func.count()).where(*under_way))) >= settings().max_open_uploads:
            raise QuotaExceeded(f"{count} uploads of yours are under way, and no more may be; finish or delete one")
        s.add_all([made, *([customer_keys.row(storage.key)] if storage.key else [])])
        s.flush()
        s.refresh(made, ["expires_at"])
        audit.record(s, "upload.begin", owner, made.id, size=length)
    staging(storage).create(made.id)
    return made


def get(s: Session, ident: str, owner: str) -> Upload:
    """Raises:
    NotFound: unknown, somebody else's, or expired.
    """
    found = owned(s, Upload, ident, owner)
    if s.scalar(select(now())) > found.expires_at:
        raise NotFound("there is no such upload")
    return found


def claim(s: Session, ident: str, offset: int, exclusive: bool) -> int:
    """The right to write from `offset` on: a new fence. `exclusive`: whoever held it before is known to have ended.

    Raises:
        NotFound, OffsetMismatch, Locked, and what the upload was refused with.
    """
    free = true() if exclusive else or_(Upload.lease_until.is_(None), Upload.lease_until < now())
    eligible = (Upload.id == ident, Upload.received == offset, Upload.error.is_(None), free)
    values = {"fence": Upload.fence + 1, "lease_until": now() + settings().lease}
    fence = s.scalar(update(Upload).where(*eligible).values(**values).returning(Upload.fence), execution_options=_APART)
    if fence is None:
        check(s, ident, offset)
        raise Locked(LOCKED)
    return fence


def miss(s: Session, ident: str, offset: int) -> NoReturn:
    """There are no bytes: whoever was faster has made an artifact of them or is about to, or somebody has deleted them.

    Raises:
        What `check` raises, Locked, NotFound.
    """
    check(s, ident, offset)
    if s.scalar(select(Upload.id).where(Upload.id == ident, Upload.lease_until > now())):
        raise Locked(LOCKED)
    raise NotFound("the upload's bytes are gone; begin anew")


def check(s: Session, ident: str, offset: int) -> None:
    """Whether the upload goes on at `offset`.

    Raises:
        NotFound, OffsetMismatch, and what the upload was refused with.
    """
    upload = s.get(Upload, ident)
    if upload is None:
        raise NotFound("there is no such upload")
    if upload.error is not None:
        raise error_of(upload.error)
    if upload.received != offset:
        raise OffsetMismatch(f"Upload-Offset is {offset}, and the upload goes on at {upload.received}", offset=upload.received)


def write(s: Session, ident: str, fence: int, **values) -> None:
    """Change the upload's row as the writer that holds `fence`; a sign of life moves the expiry on.

    Raises:
        NotFound: it was deleted; Locked: somebody else writes now. In both cases nothing was changed, and the writer has to stop.
    """
    statement = update(Upload).where(Upload.id == ident, Upload.fence == fence)
    if s.execute(statement.values(expires_at=now() + settings().upload_ttl, **values), execution_options=_APART).rowcount != 1:
        if s.get(Upload, ident) is None:
            raise NotFound("the upload was deleted")
        raise Locked("another request has taken this upload over")


def forget(storage: Storage, *conditions) -> int:
    """Delete the uploads that meet the conditions, rows first. What became of them stays. Returns how many."""
    with session() as s, s.begin():
        found = s.execute(delete(Upload).where(*conditions).returning(Upload.id, Upload.owner, Upload.details, Upload.customer_key), execution_options=_APART).all()
        for ident, owner, *_ in found:
            audit.record(s, "upload.delete", owner, ident)
    for ident, _, details, keyed in found:
        if "multipart" in details:
            storage.place.client.abort(whole_key(ident), details["multipart"])
        staging(storage, keyed is not None).drop(ident)
    return len(found)


def drop_expired(storage: Storage) -> int:
    return forget(storage, Upload.expires_at < now())


def seal(upload: Upload, fence: int, key: str, digest: Chunked, found: str) -> None:
    """All bytes are there, hashed and judged. Raises what `write` raises."""
    sha256 = digest.hexdigest()
    upload.format, upload.details = found, upload.details | {"whole": {"key": key, "sha256": sha256}}
    with session() as s, s.begin():
        write(s, upload.id, fence, format=found, details=upload.details)
        hold(s, sha256, upload.length, digest.chunks())


def finish(storage: Storage, upload: Upload, fence: int) -> Artifact:
    """The artifact of an upload that was sealed, now or by an earlier request."""
    made = Artifact(owner=upload.owner, kind=upload.kind, format=upload.format, name=upload.name)

    def completed(s: Session) -> None:
        write(s, upload.id, fence, received=upload.length, artifact_id=made.id, lease_until=None)

    whole = upload.details["whole"]
    keep(storage, whole["key"], whole["sha256"], upload.length, made, completed)
    staging(storage).drop(upload.id)
    return made


async def to_its_end(places: Staging, ident: str, fence: int, writing: Awaitable[None]) -> None:
    """However it ends, the upload is let go of; and when the file is refused, that stays."""
    try:
        await writing
    except (InputRefused, ChecksumMismatch) as e:
        await in_session(write, ident, fence, error=e.problem(), lease_until=None)
        await asyncio.to_thread(places.drop, ident)
        raise
    except BaseException:
        with suppress(ModelpressError):  # it may be no longer ours
            await in_session(write, ident, fence, lease_until=None)
        raise


async def in_session(call: Callable, *args, **values):
    def run():
        with session() as s, s.begin():
            return call(s, *args, **values)

    return await asyncio.to_thread(run)


async def at_length(call: Callable[[], T]) -> T:
    """`call`, which may take minutes, in a thread."""
    return await to_thread.run_sync(call, limiter=_AT_LENGTH)


@asynccontextmanager
async def alive(ident: str, fence: int) -> AsyncIterator[None]:
    """While this is open, the lease does not run out."""

    held = (Upload.id == ident, Upload.fence == fence, Upload.lease_until.is_not(None))

    def extend(s: Session) -> None:
        s.execute(update(Upload).where(*held).values(lease_until=now() + settings().lease, expires_at=now() + settings().upload_ttl), execution_options=_APART)

    async def beat() -> None:
        while True:
            await asyncio.sleep(settings().heartbeat)
            try:
                await in_session(extend)
            except Exception as e:  # whatever the database raises: the lease says for how long that may go on
                log.warning("upload %s: no heartbeat: %s", ident, e)

    beating = asyncio.create_task(beat())
    try:
        yield
    finally:
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
