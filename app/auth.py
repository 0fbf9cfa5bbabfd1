"""Who sends a request, and whether the key allows it: the bearer key is looked up, its scope held against the request, its owner's rate counted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header, Request
from starlette.concurrency import run_in_threadpool

from app import audit, last_use, rates
from app.api_keys import key_of
from app.db import reading
from app.errors import InsufficientScope, Unauthorized
from app.scopes import ADMIN, READ, WRITE, allows

_SAFE = ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True)
class Caller:
    owner: str
    key_id: str
    scope: str


def identify(authorization: str | None) -> Caller:
    """Whose bearer key it is.

    Raises:
        Unauthorized: no key, not one of ours, revoked or expired.
    """
    scheme, _, key = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise Unauthorized("no key was sent: `Authorization: Bearer mp_...`; the command line takes it from MODELPRESS_API_KEY, else from the file api-key in MODELPRESS_HOME")
    with reading() as s:
        found = key_of(s, key.strip())
    if found is None:
        raise Unauthorized("this API key is not known, was revoked, or has expired")
    last_use.note(found.id)
    return Caller(found.owner, found.id, found.scope)


async def admit(request: Request, authorization: str | None, needed: str) -> str:
    """The owner on whose behalf a request is carried out.

    Raises:
        Unauthorized; InsufficientScope: the key may not; TooManyRequests.
    """
    caller = await run_in_threadpool(identify, authorization)
    audit.actor.set((audit.KEY, caller.key_id))  # in the request's own context, which its threads inherit
    await rates.count(request, caller.owner)
    if not allows(caller.scope, needed):
        raise InsufficientScope(f"this needs a key with the scope {needed}, and this key has {caller.scope}", scope=needed)
    return caller.owner


def asking(scope: str | None = None) -> Callable[..., Awaitable[str]]:
    """A dependency that wants a scope. Without one: `read` for what changes nothing by its method, else `write`, so that a new route cannot ask for too little."""

    async def owner(request: Request, authorization: Annotated[str | None, Header(include_in_schema=False)] = None) -> str:
        return await admit(request, authorization, scope or (READ if request.method in _SAFE else WRITE))

    return owner


Owner = Annotated[str, Depends(asking())]
ReadingOwner = Annotated[str, Depends(asking(READ))]
"""For a POST that only looks or computes."""
WritingOwner = Annotated[str, Depends(asking(WRITE))]
"""For a GET that tells a secret."""
AdminOwner = Annotated[str, Depends(asking(ADMIN))]
