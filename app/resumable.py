"""Uploads that can be resumed: who may write, up to where, and what becomes of the bytes once all are there.

    create -> append, append, ... -> the artifact, or a refusal that stays

Whoever appends claims the upload: a new fence and a lease, as with a job. Every write to the row is `WHERE fence = :f`, so that of several writers one
goes on. `received` moves only after the bytes are on disk, and to the full length only in the transaction that makes the artifact.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import NoReturn

from sqlalchemy import delete, func, or_, select, true, update
from sqlalchemy.orm import Session
from starlette.requests import ClientDisconnect

from app.config import settings
from app.db import now, session
from app.errors import (
    ChecksumMismatch,
    InputRefused,
    Locked,
    ModelpressError,
    NotFound,
    OffsetMismatch,
    PayloadTooLarge,
    PieceMismatch,
    QuotaExceeded,
    RequestTimeout,
    error_of,
)
from app.formats import header_bytes_needed, sniff
from app.models import ApiKey, Artifact, Upload
from app.owned import owned
from app.staging import Place, Staging, direct_key, staging
from app.storage import BATCH, Storage
from app.tus import Checksum
from app.upload import keep

LOCKED = "another request is writing to this upload; ask for its offset when that has ended"
_APART = {"synchronize_session": False}
_hashes: OrderedDict[str, tuple[int, hashlib._Hash]] = OrderedDict()  # upload -> how much of it this process has hashed; it spares reading it again
_MAX_HASHES = 1000


def create(storage: Storage, *, owner: str, name: str, kind: str, length: int, sha256: str | None, metadata: str) -> Upload:
    """A new upload, without a byte.

    Raises:
        QuotaExceeded: too many of the owner's are under way.
    """
    made = Upload(owner=owner, name=name, kind=kind, length=length, sha256=sha256, details={"metadata": metadata})
    made.expires_at = now() + settings().upload_ttl
    with session() as s, s.begin():
        s.execute(select(ApiKey.id).where(ApiKey.owner == owner).with_for_update())  # one at a time, so that the count is right
        under_way = (Upload.owner == owner, Upload.received < Upload.length, Upload.error.is_(None), Upload.expires_at > now())
        if (count := s.scalar(select(func.count()).where(*under_way))) >= settings().max_open_uploads:
            raise QuotaExceeded(f"{count} uploads of yours are under way, and no more may be; finish or delete one")
        s.add(made)
        s.flush()
        s.refresh(made, ["expires_at"])
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


def _miss(s: Session, ident: str, offset: int) -> NoReturn:
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
        found = s.execute(delete(Upload).where(*conditions).returning(Upload.id, Upload.details), execution_options=_APART).all()
    for ident, details in found:
        if "multipart" in details:
            storage.place.client.abort(direct_key(ident), details["multipart"])
        staging(storage).drop(ident)
    return len(found)


def drop_expired(storage: Storage) -> int:
    return forget(storage, Upload.expires_at < now())


async def append(storage: Storage, upload: Upload, offset: int, body: AsyncIterator[bytes], checksum: Checksum | None = None) -> None:
    """Write what `body` holds, committing every `upload_piece` bytes; with a checksum, all of it or nothing. What arrived of a
    body that breaks off is kept. The last bytes make the artifact.

    Raises:
        Locked, OffsetMismatch, NotFound, PayloadTooLarge, PieceMismatch, StorageFull, what `body` raises, and, when it is then refused for good:
        InputRefused, ChecksumMismatch.
    """
    places = staging(storage)
    try:
        with ExitStack() as stack:
            place = await asyncio.to_thread(stack.enter_context, places.open(upload.id))
            fence = await in_session(claim, upload.id, offset, place.exclusive)
            async with alive(upload.id, fence):
                await to_its_end(places, upload.id, fence, _Writing(storage, places, place, upload, fence, offset).run(body, checksum))
    except FileNotFoundError:
        await in_session(_miss, upload.id, offset)


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


class _Writing:
    """One request's bytes on their way into an upload that it has claimed."""

    def __init__(self, storage: Storage, places: Staging, place: Place, upload: Upload, fence: int, offset: int):
        self._storage, self._places, self._place, self._upload, self._fence, self._at = storage, places, place, upload, fence, offset
        self._format = upload.format
        known_to, known = _hashes.get(upload.id, (0, hashlib.sha256()))
        self._digest = known.copy() if known_to == offset else None

    async def run(self, body: AsyncIterator[bytes], checksum: Checksum | None) -> None:
        incoming, length = Incoming(body, self._upload.length - self._at), self._upload.length
        hashes = [self._digest] if self._digest else []
        check = checksum and checksum.new()
        hashes += [check] if check else []
        await asyncio.to_thread(self._place.begin, self._at, self._fence)
        while not incoming.ended:
            at = self._at + await self._place.write(incoming.piece(length if check else settings().upload_piece), *hashes)
            if check and (incoming.broken or check.digest() != checksum.digest):
                raise incoming.broken or PieceMismatch(f"{at - self._at} bytes arrived, and their {checksum.algorithm} is another one")
            await self._judge(at)
            if at < length:
                await in_session(write, self._upload.id, self._fence, received=at, format=self._format, lease_until=_lease(incoming.ended))
            self._at = at
        self._remember()
        if incoming.broken and self._at < length:
            raise incoming.broken
        if self._at == length:
            await self._finish()

    async def _judge(self, at: int) -> None:
        """Look at the head as soon as it is there.

        Raises:
            InputRefused.
        """
        if self._format is None:
            head = await asyncio.to_thread(self._head, at)
            if head is not None:
                self._format = await asyncio.to_thread(sniff, self._upload.name, head, self._upload.length)

    def _head(self, at: int) -> bytes | None:
        ident, length = self._upload.id, self._upload.length
        if at < min(8, length):
            return None
        needed = min(header_bytes_needed(self._places.read(ident, 0, min(8, length))), length)
        return self._places.read(ident, 0, needed) if at >= needed else None

    def _remember(self) -> None:
        if self._digest is not None:
            _hashes[self._upload.id] = (self._at, self._digest)
            _hashes.move_to_end(self._upload.id)
            while len(_hashes) > _MAX_HASHES:
                _hashes.popitem(last=False)

    async def _finish(self) -> None:
        upload, storage = self._upload, self._storage
        made = Artifact(owner=upload.owner, kind=upload.kind, format=self._format, name=upload.name)

        def completed(s: Session) -> None:
            write(s, upload.id, self._fence, received=upload.length, format=self._format, artifact_id=made.id, lease_until=None)

        key, told = await self._places.whole(upload.id, upload.length)
        sha256 = told or (self._digest.hexdigest() if self._digest else await asyncio.to_thread(self._hash, key))
        if upload.sha256 not in (None, sha256):
            raise ChecksumMismatch(f"{upload.length} bytes with SHA-256 {sha256} arrived, and {upload.sha256} was announced")
        await asyncio.to_thread(keep, storage, key, sha256, upload.length, made, completed)
        _hashes.pop(upload.id, None)
        await asyncio.to_thread(self._places.drop, upload.id)

    def _hash(self, key: str) -> str:
        digest = hashlib.sha256()
        for batch in self._storage.stream(key):
            digest.update(batch)
        return digest.hexdigest()


class Incoming:
    """The body of a request in batches, and those in pieces.

    Args:
        room: bytes that are taken at most.
    """

    def __init__(self, body: AsyncIterator[bytes], room: int):
        self._body, self._room = body, room
        self.ended = False
        self.broken: Exception | None = None  # with what it broke off

    async def piece(self, limit: int) -> AsyncIterator[bytes]:
        """Batches that make at least `limit` bytes, or all that is left.

        Raises:
            PayloadTooLarge.
        """
        taken, held = 0, bytearray()
        while not self.ended and taken + len(held) < limit:
            try:
                data = await anext(self._body, None)
            except (ClientDisconnect, RequestTimeout) as e:
                self.broken, data = e, None
            self.ended = data is None
            self._room -= len(data or b"")
            if self._room < 0:
                raise PayloadTooLarge("the body goes on beyond Upload-Length")
            held += data or b""
            if len(held) >= BATCH:
                taken += len(held)
                yield held
                held = bytearray()
        if held:
            yield held


def _lease(ended: bool):
    return None if ended else now() + settings().lease


async def in_session(call: Callable, *args, **values):
    def run():
        with session() as s, s.begin():
            return call(s, *args, **values)

    return await asyncio.to_thread(run)


@asynccontextmanager
async def alive(ident: str, fence: int) -> AsyncIterator[None]:
    """While this is open, the lease does not run out."""

    held = (Upload.id == ident, Upload.fence == fence, Upload.lease_until.is_not(None))

    def extend(s: Session) -> None:
        s.execute(update(Upload).where(*held).values(lease_until=now() + settings().lease, expires_at=now() + settings().upload_ttl), execution_options=_APART)

    async def beat() -> None:
        while True:
            await asyncio.sleep(settings().heartbeat)
            await in_session(extend)

    beating = asyncio.create_task(beat())
    try:
        yield
    finally:
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
