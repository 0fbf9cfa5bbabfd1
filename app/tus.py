"""tus 1.0 (https://tus.io/protocols/resumable-upload): what its headers say, parsed strictly."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import NamedTuple

from starlette.datastructures import Headers

from app.errors import MalformedRequest, UnsupportedTusVersion

VERSION = "1.0.0"
EXTENSIONS = ("creation", "creation-with-upload", "expiration", "checksum", "termination")
ALGORITHMS = {"sha1": 20, "sha256": 32, "md5": 16}
"""Of Upload-Checksum, with the bytes that a digest has."""
MEDIA_TYPE = "application/offset+octet-stream"
MAX_METADATA = 4096  # bytes of the header
MAX_KEYS = 32
_NUMBER = re.compile(r"[0-9]{1,18}", re.ASCII)
_KEY = re.compile(r"[!-+\--~]{1,255}", re.ASCII)  # printable ASCII without a space and a comma


class Checksum(NamedTuple):
    algorithm: str
    digest: bytes

    def new(self):
        return hashlib.new(self.algorithm, usedforsecurity=False)


def check_version(headers: Headers) -> None:
    """Raises:
    UnsupportedTusVersion.
    """
    if (version := headers.get("tus-resumable")) != VERSION:
        raise UnsupportedTusVersion(f"Tus-Resumable is {'missing' if version is None else repr(version[:20])}; this service speaks {VERSION}")


def number(headers: Headers, name: str) -> int:
    """A header that holds a count of bytes.

    Raises:
        MalformedRequest.
    """
    text = headers.get(name)
    if text is None or not _NUMBER.fullmatch(text):
        raise MalformedRequest(f"{name} is {'missing' if text is None else repr(text[:40])}; it is a number of bytes")
    return int(text)


def checksum(header: str | None) -> Checksum | None:
    """`Upload-Checksum: sha1 BASE64`.

    Raises:
        MalformedRequest.
    """
    if header is None:
        return None
    algorithm, _, text = header.strip().partition(" ")
    if algorithm not in ALGORITHMS:
        raise MalformedRequest(f"Upload-Checksum: {algorithm[:40]!r} is none of: {', '.join(ALGORITHMS)}")
    digest = _decoded(text, "Upload-Checksum")
    if len(digest) != ALGORITHMS[algorithm]:
        raise MalformedRequest(f"Upload-Checksum: a {algorithm} has {ALGORITHMS[algorithm]} bytes, and this one has {len(digest)}")
    return Checksum(algorithm, digest)


def metadata(header: str | None) -> dict[str, str]:
    """`Upload-Metadata: key BASE64,other BASE64`; a key may stand without a value.

    Raises:
        MalformedRequest.
    """
    if not header:
        return {}
    if len(header) > MAX_METADATA:
        raise MalformedRequest(f"Upload-Metadata has {len(header)} bytes; at most {MAX_METADATA} are taken")
    pairs = [pair.strip().partition(" ") for pair in header.split(",")]
    if len(pairs) > MAX_KEYS:
        raise MalformedRequest(f"Upload-Metadata has {len(pairs)} keys; at most {MAX_KEYS} are taken")
    out: dict[str, str] = {}
    for key, _, text in pairs:
        if not _KEY.fullmatch(key) or key in out:
            raise MalformedRequest(f"Upload-Metadata: {key[:40]!r} is not a key that stands there once, of printable ASCII without spaces")
        try:
            out[key] = _decoded(text, f"Upload-Metadata: {key}").decode()
        except UnicodeDecodeError:
            raise MalformedRequest(f"Upload-Metadata: {key} is not UTF-8 in base64") from None
    return out


def _decoded(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text.encode("latin-1"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise MalformedRequest(f"{where[:80]}: {text[:40]!r} is not base64") from None
