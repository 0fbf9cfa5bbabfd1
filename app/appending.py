"""The bytes of a request on their way into an upload (`app.resumable`): written, hashed, judged, and committed piece by piece."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import ExitStack
from functools import partial

from starlette.requests import ClientDisconnect

from app.chunks import Chunked
from app.config import settings
from app.db import now
from app.errors import ChecksumMismatch, PayloadTooLarge, PieceMismatch, RequestTimeout
from app.formats import header_bytes_needed, sniff
from app.models import Upload
from app.resumable import alive, at_length, claim, finish, in_session, miss, seal, to_its_end, write
from app.staging import Place, Staging, staging
from app.storage import BATCH, Storage
from app.tus import Checksum

_hashes: OrderedDict[str, tuple[int, Chunked]] = OrderedDict()  # upload -> how much of it this process has hashed; it spares reading it again
_MAX_HASHES = 1000


async def append(storage: Storage, upload: Upload, offset: int, body: AsyncIterator[bytes], checksum: Checksum | None = None) -> None:
    """Write what `body` holds, committing every `upload_piece` bytes; with a checksum, all of it or nothing. What arrived of a
    body that breaks off is kept. The last bytes make the artifact.

    Raises:
        Locked, OffsetMismatch, NotFound, PayloadTooLarge, PieceMismatch, StorageFull, what `body` raises, and, when it is then refused for good:
        InputRefused, ChecksumMismatch.
    """
    places = staging(storage)
    if "whole" in upload.details:  # the bytes are known; what comes is not read again
        fence = await in_session(claim, upload.id, offset, False)
        async with alive(upload.id, fence):
            await to_its_end(places, upload.id, fence, at_length(partial(finish, storage, upload, fence)))
        return
    try:
        with ExitStack() as stack:
            place = await asyncio.to_thread(stack.enter_context, places.open(upload.id))
            fence = await in_session(claim, upload.id, offset, place.exclusive)
            async with alive(upload.id, fence):
                await to_its_end(places, upload.id, fence, _Writing(storage, places, place, upload, fence, offset).run(body, checksum))
    except FileNotFoundError:
        await in_session(miss, upload.id, offset)


class _Writing:
    """One request's bytes on their way into an upload that it has claimed."""

    def __init__(self, storage: Storage, places: Staging, place: Place, upload: Upload, fence: int, offset: int):
        self._storage, self._places, self._place, self._upload, self._fence, self._at = storage, places, place, upload, fence, offset
        self._format = upload.format
        known_to, known = _hashes.get(upload.id, (0, Chunked()))
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
                self._format = await asyncio.to_thread(sniff, self._upload.name, head, self._upload.length, kind=self._upload.kind)

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
        upload = self._upload
        key, told = await self._places.whole(upload.id, upload.length, self._digest is not None)
        digest = told or self._digest or await at_length(partial(self._hash, key))
        sha256 = digest.hexdigest()
        if upload.sha256 not in (None, sha256):
            raise ChecksumMismatch(f"{upload.length} bytes with SHA-256 {sha256} arrived, and {upload.sha256} was announced")
        await asyncio.to_thread(seal, upload, self._fence, key, digest, self._format)
        await asyncio.to_thread(finish, self._storage, upload, self._fence)
        _hashes.pop(upload.id, None)

    def _hash(self, key: str) -> Chunked:
        digest = Chunked()
        for batch in self._storage.stream(key):
            digest.update(batch)
        return digest


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
