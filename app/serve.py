"""Sending blobs: ranges, validators, and no byte of a file that is not what it was.

Every chunk is held against its digest before a byte of it is sent (`app.verified`), so a response may be cut off, but never ends whole with wrong bytes.
"""

from __future__ import annotations

import asyncio
import base64
import re
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from app import customer_keys
from app.config import settings
from app.errors import RangeNotSatisfiable
from app.storage import Storage, blob_key
from app.verified import there, verified

REDIRECT = 300.0  # seconds that a bucket's URL is good for
_RANGE = re.compile(r"\s*+bytes\s*+=\s*+([0-9]*+)\s*+-\s*+([0-9]*+)\s*+", re.ASCII)  # possessive, so that it is linear


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """The one range that a Range header asks for, as (start, end not included); None where the whole is to be sent (RFC 9110, 14.2).

    Raises:
        RangeNotSatisfiable: it lies outside.
    """
    asked = _RANGE.fullmatch(header or "")
    if not asked or not (asked[1] or asked[2]):
        return None  # several ranges, another unit, or no range at all
    first, last = (int(n[:20]) if n else None for n in asked.groups())
    if first is None:
        start, end = max(size - last, 0), size
    elif last is not None and last < first:
        return None
    else:
        start, end = first, size if last is None else min(last + 1, size)
    if start >= end:
        raise RangeNotSatisfiable(f"{header[:60]} lies outside of {size} bytes", size=size)
    return start, end


def disposition(name: str) -> str:
    """`Content-Disposition` with a name that cannot leave the header (RFC 6266)."""
    plain = re.sub(r'[^\x20-\x7e]|["\\%/]', "_", name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


async def send(request: Request, etag: str, size: int, content, headers: dict[str, str], media_type: str = "application/octet-stream") -> Response:
    """Answer GET or HEAD, with validators and one range.

    Args:
        etag: what changes with the bytes.
        content: `(start, end)` -> an async iterator of these bytes.
    """
    tag = f'"{etag}"'
    headers = headers | {"ETag": tag, "Accept-Ranges": "bytes", "Cache-Control": "private, no-cache"}
    if _names(request.headers.get("if-none-match"), tag):
        return Response(status_code=304, headers=headers)
    start, end, status = 0, size, 200
    if request.method == "GET" and request.headers.get("if-range", tag) == tag:
        if asked := byte_range(request.headers.get("range"), size):
            start, end, status = *asked, 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - start)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)
    pieces = content(start, end)
    first = await anext(pieces, b"")  # what is damaged at once is a problem, not a broken stream

    async def all_pieces():
        yield first
        async for piece in pieces:
            yield piece

    return StreamingResponse(all_pieces(), status, headers, media_type=media_type)


async def send_blob(request: Request, storage: Storage, sha256: str, size: int, name: str | None, media_type: str = "application/octet-stream") -> Response:
    """`name`: under which it is to be saved; None where it is to be shown."""
    headers = {"Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"}
    if name is not None:
        headers["Content-Disposition"] = disposition(name)
        if settings().redirect_downloads and sha256 not in storage.ring and customer_keys.NAME not in request.headers and request.method == "GET" and not _names(request.headers.get("if-none-match"), f'"{sha256}"'):
            return await _redirect(storage, sha256, size, headers, media_type)
    return await send(request, sha256, size, lambda start, end: verified(storage, sha256, size, start, end), headers, media_type)


async def _redirect(storage: Storage, sha256: str, size: int, headers: dict[str, str], media_type: str) -> Response:
    """To the bucket itself. Nobody hashes on that way but the client, which has the digest from here.

    Raises:
        StorageDamaged.
    """
    await there(storage, sha256, size)
    shown = {"ResponseContentDisposition": headers["Content-Disposition"], "ResponseContentType": media_type}
    url = await asyncio.to_thread(lambda: storage.place.public.url(blob_key(sha256), REDIRECT, **shown))
    return Response(status_code=307, headers=headers | {"Location": url, "ETag": f'"{sha256}"', "Cache-Control": "private, no-store"})


def _names(header: str | None, tag: str) -> bool:
    """Whether If-None-Match names the tag (weak comparison)."""
    return header is not None and (header.strip() == "*" or tag in [t.strip().removeprefix("W/") for t in header.split(",")])
