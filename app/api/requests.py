"""Reading requests: JSON bodies, digests, names, cursors."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
import unicodedata
from typing import Any

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from app.config import settings
from app.errors import InvalidCursor, MalformedRequest, PayloadTooLarge, UnsupportedMediaType
from app.strict import ID, parse_json

MAX_NAME = 255  # bytes, as file systems have it
LARGE = 64 << 10  # bytes; parsing more would hold up other requests
_DIGESTS = ("repr-digest", "content-digest", "digest")
_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


def media_type(request: Request) -> str:
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


async def read_json(request: Request, limit: int | None = None) -> Any:
    """The body, parsed.

    Raises:
        UnsupportedMediaType, PayloadTooLarge, MalformedJson.
    """
    limit = limit or settings().max_json_bytes
    content_type = request.headers.get("content-type", "")
    charset = re.search(r"(?i)charset\s*=\s*\"?([^\s;\"]+)", content_type)
    if media_type(request) != "application/json" or (charset and charset[1].lower() not in ("utf-8", "utf8")):
        raise UnsupportedMediaType(f"Content-Type is {content_type[:100]!r}; send application/json in UTF-8")
    announce(request, limit)
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise PayloadTooLarge(f"a JSON body has at most {limit} bytes here")
    return await run_in_threadpool(parse_json, bytes(body)) if len(body) > LARGE else parse_json(bytes(body))


def announce(request: Request, limit: int) -> int | None:
    """The announced Content-Length, refused before a byte of the body is read when it is over the limit."""
    length = request.headers.get("content-length")
    if length is None:
        return None
    if int(length) > limit:
        raise PayloadTooLarge(f"the body has {length} bytes; at most {limit} are taken")
    return int(length)


def announced_sha256(request: Request, headers: tuple[str, ...] = _DIGESTS) -> str | None:
    """SHA-256 (hex) of Repr-Digest or Content-Digest (RFC 9530: `sha-256=:BASE64:`), or of Digest (RFC 3230: `sha-256=BASE64`).

    Raises:
        MalformedRequest: the header is there and is not that. Other algorithms are passed over.
    """
    for header in headers:
        if (value := request.headers.get(header)) is None:
            continue
        for part in value.split(","):
            algorithm, equals, text = part.strip().partition("=")
            quoted = re.fullmatch(r":([A-Za-z0-9+/]*={0,2}):" if header != "digest" else r"([A-Za-z0-9+/]*={0,2})", text.split(";")[0].strip())
            if not equals or not quoted:
                raise MalformedRequest(f"{header}: {value[:100]!r} is not a digest such as sha-256=:{'A' * 43}=:")
            if algorithm.lower() == "sha-256":
                try:
                    raw = base64.b64decode(quoted[1], validate=True)
                except binascii.Error:
                    raw = b""
                if len(raw) != 32:
                    raise MalformedRequest(f"{header}: a SHA-256 has 32 bytes in base64, {value[:100]!r} has not")
                return raw.hex()
    return None


def clean_name(name: str) -> str:
    """A stranger's file name as one that is safe to show and to use: its last component, without characters that nobody sees."""
    last = re.split(r"[/\\]", unicodedata.normalize("NFC", name))[-1]
    last = "".join(c for c in last if unicodedata.category(c)[0] not in "CZ" or c == " ")
    last = re.sub(r'[:*?"<>|]', "_", last).strip(" ").lstrip(".").rstrip(" .")
    if _DEVICES.fullmatch(last):
        last = "_" + last
    stem, dot, end = last.rpartition(".")
    if len(last.encode()) > MAX_NAME:
        end = dot + end if dot and len(end) <= 16 else ""
        stem = last.encode()[: MAX_NAME - len(end.encode())].decode(errors="ignore")
        last = stem + end
    return last or "unnamed"


def cursor(created_at: float, ident: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([created_at, ident]).encode()).decode().rstrip("=")


def parse_cursor(text: str) -> tuple[float, str]:
    try:
        created_at, ident = json.loads(base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True))
    except (ValueError, TypeError, RecursionError):
        raise InvalidCursor("the cursor is not one that this list has given out") from None
    if type(created_at) is not float or not math.isfinite(created_at) or type(ident) is not str or not ID.fullmatch(ident):
        raise InvalidCursor("the cursor is not one that this list has given out")
    return created_at, ident
