"""Encrypted objects: AES-256-GCM in chunks, so that any range can be read without the rest (the STREAM construction of Hoang, Reyhanitabar, Rogaway and Vizár, 2015).

    0         8        12        16                 32
    +---------+--------+---------+------------------+---------------+-----+---------------+-----+- - -+---------------+-----+
    | mpseal1\\n| u32 LE | zero    | id of the data   | chunk 0       | tag | chunk 1       | tag |     | the last one  | tag |
    |         | 65536  |         | key, 16 bytes    | 65,536 bytes  | 16  | 65,536 bytes  | 16  |     | 1 to 65,536   | 16  |
    +---------+--------+---------+------------------+---------------+-----+---------------+-----+- - -+---------------+-----+

    nonce of a chunk    u8 1 for the last chunk, else 0; three zero bytes; u64 BE index of the chunk
    associated data     the 32 bytes of the header

Every object has a data key of its own, random and used for it alone, so counting nonces never repeat under a key. A flipped bit, a chunk at another place or of another object, and
an object that was cut (its last chunk is not marked as one) or went on fail their tag. An empty object has one empty chunk. n bytes take 32 + n + 16 * max(1, ceil(n / 65536)).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from app.errors import WrongBytes

MAGIC = b"mpseal1\n"
HEADER, CHUNK, TAG, ID = 32, 64 << 10, 16, 16  # bytes
_STEP = CHUNK + TAG


def header(ident: bytes) -> bytes:
    return struct.pack("<8sI4x16s", MAGIC, CHUNK, ident)


def ident_of(head: bytes) -> bytes:
    """The data key's id.

    Raises:
        WrongBytes: this is no header.
    """
    if len(head) != HEADER or head[:16] != header(b"")[:16]:
        raise WrongBytes("an encrypted object does not begin as one")
    return head[16:]


def _chunks(size: int) -> int:
    return max(1, -(-size // CHUNK))


def sealed_size(size: int) -> int:
    return HEADER + size + TAG * _chunks(size)


def plain_size(sealed: int) -> int:
    """Raises:
    WrongBytes: no object has this size.
    """
    body = sealed - HEADER
    size = body - TAG * max(1, -(-body // _STEP))
    if size < 0 or sealed_size(size) != sealed:
        raise WrongBytes(f"an encrypted object has {sealed} bytes, which none can have")
    return size


def _nonce(index: int, last: bool) -> bytes:
    return struct.pack(">B3xQ", last, index)


class Sealing:
    """Bytes on their way in: `head`, then what `update` and `finish` return.

    Args:
        key: 32 bytes, for this object alone. ident: its id, 16 bytes.
    """

    def __init__(self, key: bytes, ident: bytes):
        self._cipher, self.head = AESGCM(key), header(ident)
        self._held, self._index = b"", 0

    def update(self, data: bytes | bytearray | memoryview) -> bytes:
        """All whole chunks but one that may be the last."""
        data = self._held + bytes(data) if self._held else bytes(data)
        whole = max(0, -(-len(data) // CHUNK) - 1) * CHUNK
        view = memoryview(data)
        out = b"".join(self._seal(view[at : at + CHUNK], False) for at in range(0, whole, CHUNK))
        self._held = data[whole:]
        return out

    def finish(self) -> bytes:
        return self._seal(self._held, True)

    def _seal(self, chunk, last: bool) -> bytes:
        out = self._cipher.encrypt(_nonce(self._index, last), chunk, self.head)
        self._index += 1
        return out


class Opening:
    """An encrypted object to be read.

    Args:
        key: the data key. head: the object's header. sealed: bytes of the whole object.
    """

    def __init__(self, key: bytes, head: bytes, sealed: int):
        self._cipher, self._head = AESGCM(key), head
        self.size, self.sealed = plain_size(sealed), sealed
        self._last = _chunks(self.size) - 1

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Which bytes of the object have plain bytes `start` to `end`, not included. Always a chunk at least, so that an empty range is checked, too."""
        first, last = min(start // CHUNK, self._last), min(max(end - 1, start) // CHUNK, self._last)
        return HEADER + first * _STEP, min(HEADER + (last + 1) * _STEP, self.sealed)

    def open(self, data: bytes, start: int, end: int) -> bytes:
        """Plain bytes `start` to `end` of `data`, the object's bytes of that `span`.

        Raises:
            WrongBytes: they are not what was written there.
        """
        first = min(start // CHUNK, self._last)
        if len(data) != (lambda span: span[1] - span[0])(self.span(start, end)):
            raise WrongBytes("an encrypted object is shorter than it was")
        try:
            plain = b"".join(self._plain(memoryview(data), first))
        except InvalidTag:
            raise WrongBytes("an encrypted object has other bytes than were written") from None
        at = first * CHUNK
        return plain[start - at : max(end, start) - at]

    def _plain(self, view: memoryview, first: int) -> Iterator[bytes]:
        for n, at in enumerate(range(0, len(view), _STEP)):
            yield self._cipher.decrypt(_nonce(first + n, first + n == self._last), view[at : at + _STEP], self._head)
