"""Digests of the chunks of a blob, so that any part of it can be checked before it is sent, without reading the rest.

    blob      [chunk 0: 4 MiB][chunk 1: 4 MiB] ... [last chunk: what is left]
    chunks    [SHA-256: 32 B ][SHA-256: 32 B ] ... [SHA-256: 32 B           ]   `Blob.chunks`, in the database

They are computed from the bytes as they come in, and kept apart from them: whoever can write to the store cannot change what it is held against. A blob
of one chunk needs none: its name is the chunk's digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from sqlalchemy import LargeBinary, func, select
from sqlalchemy.orm import Session

from app.models import Blob

CHUNK = 4 << 20  # bytes
SIZE = 32  # of a digest


class Chunked:
    """SHA-256 of all bytes and of each chunk; takes the place of `hashlib.sha256()`."""

    def __init__(self):
        self._whole, self._chunk, self._left, self._ended = hashlib.sha256(), hashlib.sha256(), CHUNK, bytearray()

    def update(self, data: bytes) -> None:
        self._whole.update(data)
        view = memoryview(data)
        while view:
            part = view[: self._left]
            self._chunk.update(part)
            self._left -= len(part)
            view = view[len(part) :]
            if not self._left:
                self._ended += self._chunk.digest()
                self._chunk, self._left = hashlib.sha256(), CHUNK

    def hexdigest(self) -> str:
        return self._whole.hexdigest()

    def chunks(self) -> bytes | None:
        """The digests of all chunks; None where there is one, or nothing at all."""
        found = bytes(self._ended) + (self._chunk.digest() if self._left < CHUNK else b"")
        return found if len(found) > SIZE else None

    def copy(self) -> Chunked:
        made = Chunked()
        made._whole, made._chunk, made._left, made._ended = self._whole.copy(), self._chunk.copy(), self._left, bytearray(self._ended)
        return made


def expected(s: Session, sha256: str, size: int, first: int, last: int) -> list[bytes] | None:
    """The digests of chunks `first` to `last` (not included) of a blob of `size` bytes; None where none were kept."""
    if size <= CHUNK:
        return [bytes.fromhex(sha256)][first:last]
    part = func.substr(Blob.chunks, SIZE * first + 1, SIZE * (last - first), type_=LargeBinary)
    found = s.scalar(select(part).where(Blob.sha256 == sha256))
    if found is None or len(found) != SIZE * (last - first):
        return None
    return [found[i : i + SIZE] for i in range(0, len(found), SIZE)]


def parted(batch: bytes, at: int) -> Iterator[bytes]:
    """A batch whose first byte is the blob's byte `at`, cut where chunks end."""
    view, cut = memoryview(batch), CHUNK - at % CHUNK
    if len(batch) <= cut:
        yield batch
        return
    while view:
        yield bytes(view[:cut])
        view, cut = view[cut:], CHUNK
