"""Short-lived links: an address that opens one path of one owner's, for reading, until it expires. For browsers, whose links and EventSource carry no key.

    /v1/artifacts/<id>/archive?link=<expires>.<owner>.<signature>

The signature is HMAC-SHA256 over method, path, owner and expiry, with a secret that all API processes find in the database. Nothing else is kept of a
link, so what ends one before its time is the end of what it leads to.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from typing import Annotated
from urllib.parse import quote

from fastapi import Depends, Header, Query, Request
from starlette.concurrency import run_in_threadpool
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from app import auth, rates
from app.config import settings
from app.db import now, reading, session
from app.errors import InvalidLink
from app.models import Secret
from app.scopes import READ

LONGEST = 7 * 24 * 3600  # seconds
NAME = "links"


def make(path: str, owner: str, seconds: int) -> tuple[str, int]:
    """A link to `path`, and when it expires (seconds since the epoch)."""
    secret, time = _secret()
    expires = int(time) + seconds
    token = f"{expires}.{_encoded(owner.encode())}.{_signature(secret, path, owner, expires)}"
    return f"{(settings().public_url or '').rstrip('/')}{quote(path)}?link={token}", expires


def open_link(token: str, method: str, path: str) -> str:
    """The owner on whose behalf a link opens `path`.

    Raises:
        InvalidLink: it does not, or no longer.
    """
    try:
        expires, owner, signature = re.fullmatch(r"([0-9]{1,12})\.([\w-]+)\.([\w-]{43})", token, re.ASCII).groups()
        owner = base64.urlsafe_b64decode(owner + "=" * (-len(owner) % 4)).decode()
    except (AttributeError, binascii.Error, UnicodeDecodeError):
        raise InvalidLink("this is no link of this service") from None
    secret, time = _secret()
    good = hmac.compare_digest(signature, _signature(secret, path, owner, int(expires)))
    if not good or method not in ("GET", "HEAD"):
        raise InvalidLink("this link does not open this address")
    if time > int(expires):
        raise InvalidLink("this link has expired; ask for a new one")
    return owner


def _signature(secret: str, path: str, owner: str, expires: int) -> str:
    """Owner and expiry are of characters that hold no line end, so the lines cannot be read otherwise."""
    signed = f"GET\n{expires}\n{_encoded(owner.encode())}\n{path}"
    return _encoded(hmac.digest(secret.encode(), signed.encode(errors="surrogatepass"), hashlib.sha256))


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _secret() -> tuple[str, float]:
    """The secret, made by whoever needs it first, and the time on the database's clock."""
    query = select(Secret.value, now()).where(Secret.name == NAME)
    with reading() as s:
        found = s.execute(query).first()
    if found is None:
        try:
            with session() as s, s.begin():
                s.add(Secret(name=NAME, value=secrets.token_urlsafe(32)))
        except IntegrityError:
            pass  # another process was first
        with reading() as s:
            found = s.execute(query).one()
    return found[0], found[1]


async def reader(
    request: Request,
    authorization: Annotated[str | None, Header(include_in_schema=False)] = None,
    link: Annotated[str | None, Query(max_length=400, description="Of a short-lived link, in place of a key.")] = None,
) -> str:
    """The owner for whom a request reads: by the link that it carries, else by its key."""
    if link is None:
        return await auth.admit(request, authorization, READ)
    if len(request.query_params.getlist("link")) > 1:
        raise InvalidLink("the address carries more than one link")
    owner = await run_in_threadpool(open_link, link, request.method, request.scope["path"])
    await rates.count(request, owner)
    return owner


Reader = Annotated[str, Depends(reader)]
