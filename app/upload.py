"""One upload on its way in: its head is judged before anything is kept, its bytes are hashed as they pass, and its row is written last."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from starlette.concurrency import run_in_threadpool
from sqlalchemy.orm import Session

from app import audit, customer_keys, quotas
from app.blobs import hold, refer
from app.chunks import Chunked
from app.config import settings
from app.errors import ChecksumMismatch, PayloadTooLarge
from app.formats import header_bytes_needed, sniff
from app.models import Artifact, ArtifactFile, new_id
from app.quarantine import absolve
from app.retention import until
from app.settled import settled
from app.statement import artifact_digest
from app.storage import Storage


async def receive(
    storage: Storage, body: AsyncIterator[bytes], *, owner: str, name: str, kind: str, length: int | None, limit: int, sha256: str | None
) -> Artifact:
    """Store a file as an artifact of its own.

    Args:
        storage: under the uploader's own key, where there is one.
        name: clean; becomes the file's path.
        length: bytes announced, or None: then the format is judged when all is there.
        limit: bytes taken at most.
        sha256: what the sender says it is.

    Raises:
        InputRefused, PayloadTooLarge, ChecksumMismatch, StorageFull, and what reading `body` raises. Nothing is left behind.
    """
    incoming = _Incoming(body, limit)
    head = await incoming.head()
    found = None if length is None else await run_in_threadpool(sniff, name, head, length, kind=kind)
    key = f"tmp/uploads/{new_id()}"
    try:
        hashed = Chunked()
        size, digest = await storage.put_stream(key, incoming.all(), length, hashed)
        if sha256 is not None and digest != sha256:
            raise ChecksumMismatch(f"{size} bytes with SHA-256 {digest} arrived, and {sha256} was announced")
        found = found or await run_in_threadpool(sniff, name, head, size, kind=kind)
        artifact = Artifact(owner=owner, kind=kind, format=found, name=name)
        return await run_in_threadpool(keep, storage, key, digest, size, artifact, chunks=hashed.chunks())
    except BaseException:
        with suppress(Exception):  # what stays, the sweep removes
            await run_in_threadpool(storage.delete, key)
        raise


def keep(
    storage: Storage, key: str, sha256: str, size: int, artifact: Artifact, also: Callable[[Session], None] | None = None, chunks: bytes | None = None
) -> Artifact:
    """Staged bytes become the one file of `artifact`, whose name is its path: the one way in. It may be asked again after it broke off.

    Args:
        key: where they are; gone afterwards.
        sha256, size: of all of them, computed here and not believed.
        chunks: digests of its chunks (`app.chunks`), where they are not in the blob's row yet.
        also: done in the transaction that makes the artifact, which has its id by then; what it raises undoes that.

    Raises:
        StorageFull, Unavailable; FileNotFoundError: they are not there.
    """
    storage = storage.of(artifact.owner)
    settled(lambda s: hold(s, sha256, size, chunks))
    try:
        storage.promote(key, sha256)
    except FileNotFoundError:
        if not storage.exists(sha256):  # else it came as far as this before
            raise
    file = ArtifactFile(path=artifact.name, size=size, sha256=sha256, customer_key=storage.key and storage.key.ident)
    artifact.id, artifact.files, artifact.signatures, artifact.size = new_id(), [file], [], size
    artifact.digest = artifact_digest([{"path": file.path, "size": size, "sha256": sha256}])
    artifact.expires_at = until(settings().upload_artifact_ttl)

    def insert(s: Session) -> Artifact:
        refer(s, storage, {sha256: size})
        if storage.key:
            s.merge(customer_keys.row(storage.key))
        absolve(s, storage, sha256)
        s.add(artifact)
        s.flush()
        s.refresh(artifact, ["created_at", "expires_at"])
        audit.record(s, "artifact.create", artifact.owner, artifact.id, size=size, digest=artifact.digest)
        if settings().max_stored_bytes is not None:
            quotas.alone(s, artifact.owner)
            quotas.check_room(s, artifact.owner, beside_uploads=False)
        if also is not None:
            also(s)
        return artifact

    return settled(insert, lambda s: s.get(Artifact, artifact.id))


class _Incoming:
    """A body whose first bytes can be looked at before all of it is passed on."""

    def __init__(self, body: AsyncIterator[bytes], limit: int):
        self._body, self._limit = body, limit
        self._held, self._size = bytearray(), 0

    async def _more(self) -> bytes | None:
        """The next piece; None at the end."""
        piece = await anext(self._body, None)
        self._size += len(piece or b"")
        if self._size > self._limit:
            raise PayloadTooLarge(f"the body has more than {self._limit} bytes, and no more are taken")
        return piece

    async def _fill(self, needed: int) -> None:
        while len(self._held) < needed and (piece := await self._more()) is not None:
            self._held += piece

    async def head(self) -> bytes:
        """As many leading bytes as `sniff` needs, or all of a shorter body."""
        await self._fill(8)
        needed = header_bytes_needed(bytes(self._held[:8]))
        await self._fill(needed)
        return bytes(self._held[:needed])

    async def all(self) -> AsyncIterator[bytes]:
        held, self._held = self._held, bytearray()
        if held:
            yield bytes(held)
        while (piece := await self._more()) is not None:
            yield piece
