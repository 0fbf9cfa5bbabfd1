"""An owner's own API keys, and the log of what was done with them. Needs a key with the scope `admin`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool
from pydantic import BaseModel, Field, StringConstraints
from sqlalchemy import select

from app import api_keys
from app.api.paging import Cursor, Limit, page
from app.api.requests import read_json
from app.api.schemas import body_schema
from app.auth import AdminOwner
from app.db import now, reading
from app.errors import QuotaExceeded, Unprocessable
from app.models import ApiKey, Audit
from app.scopes import WRITE, Scope
from app.strict import Strict, validate
from app.times import parse_rfc3339, rfc3339

router = APIRouter(prefix="/v1", tags=["api keys"])

MOST = 1000  # keys of one owner that count


class KeyRequest(Strict):
    """The body of `POST /v1/api-keys`. `expires_at`: RFC 3339, or null: never."""

    name: Annotated[str, StringConstraints(max_length=200)] = ""
    scope: Scope = WRITE
    expires_at: str | None = None


class Renewal(Strict):
    """The body of `POST /v1/api-keys/{id}/renew`. `overlap`: seconds for which the old key goes on counting; `expires_at`: of the new one."""

    overlap: Annotated[float, Field(ge=0, le=30 * 24 * 3600)] = api_keys.OVERLAP
    expires_at: str | None = None


class KeyView(BaseModel):
    """`last_used_at` is exact to a minute or so. A key counts until it is revoked or expires."""

    id: str
    name: str
    scope: str
    created_at: str
    expires_at: str | None
    last_used_at: str | None
    revoked_at: str | None


class NewKeyView(KeyView):
    """`key` is told this once."""

    key: str


class Keys(BaseModel):
    items: list[KeyView]
    next: str | None


class AuditView(BaseModel):
    """`actor`: `key` (then `key` is its id), `operator` (the command line) or `service`. `subject` is the id of what was changed."""

    id: str
    at: str
    action: str
    actor: str
    key: str | None
    subject: str | None
    details: dict[str, Any]
    request_id: str | None


class AuditLog(BaseModel):
    items: list[AuditView]
    next: str | None


def _told(k: ApiKey) -> dict[str, Any]:
    times = {name: rfc3339(getattr(k, name)) for name in ("created_at", "expires_at", "last_used_at", "revoked_at")}
    return {"id": k.id, "name": k.name, "scope": k.scope} | times


@router.get("/api-keys")
def list_keys(owner: AdminOwner, limit: Limit = 50, cursor: Cursor = None) -> Keys:
    """The newest first, revoked ones too."""
    with reading() as s:
        rows, following = page(s, ApiKey, owner, cursor, limit)
    return Keys(items=[KeyView(**_told(k)) for k in rows], next=following)


@router.post("/api-keys", status_code=201, openapi_extra=body_schema(KeyRequest))
async def create_key(request: Request, response: Response, owner: AdminOwner) -> NewKeyView:
    """A new key of your own. What it opens is what you have, within its scope."""
    asked = validate(KeyRequest, await read_json(request))
    if not asked.name.isprintable():
        raise Unprocessable("a name has printable characters only", pointer="/name")
    response.headers["Cache-Control"] = "no-store"

    def issue() -> NewKeyView:
        with reading() as s:
            if api_keys.count_of(s, owner) >= MOST:
                raise QuotaExceeded(f"you have {MOST} keys that count, and no more may be; revoke one")
        key, row = api_keys.issue_key(owner, asked.name, asked.scope, _time(asked.expires_at))
        return NewKeyView(**_told(row), key=key)

    return await run_in_threadpool(issue)


@router.post("/api-keys/{ident}/renew", status_code=201, openapi_extra=body_schema(Renewal))
async def renew_key(ident: str, request: Request, response: Response, owner: AdminOwner) -> NewKeyView:
    """A new key of the same name and scope. The old one counts for `overlap` seconds more, a day by default."""
    asked = validate(Renewal, await read_json(request))
    response.headers["Cache-Control"] = "no-store"

    def renew() -> NewKeyView:
        key, row = api_keys.renew_key(ident, owner, asked.overlap, _time(asked.expires_at))
        return NewKeyView(**_told(row), key=key)

    return await run_in_threadpool(renew)


@router.delete("/api-keys/{ident}", status_code=204)
def revoke_key(ident: str, owner: AdminOwner) -> None:
    """From now on it opens nothing. Twice is as good as once; links that were made with it stay good until they expire."""
    api_keys.revoke_key(ident, owner)


@router.get("/audit")
def audit_log(owner: AdminOwner, limit: Limit = 50, cursor: Cursor = None) -> AuditLog:
    """Every change of what is yours, the newest first: who made it, when, and by which key."""
    with reading() as s:
        rows, following = page(s, Audit, owner, cursor, limit)
    return AuditLog(items=[audit_view(row) for row in rows], next=following)


def audit_view(a: Audit) -> AuditView:
    told = {name: getattr(a, name) for name in ("id", "action", "actor", "subject", "details", "request_id")}
    return AuditView(**told, at=rfc3339(a.created_at), key=a.key_id)


def _time(text: str | None) -> float | None:
    """Raises:
    Unprocessable: it is no time to come.
    """
    if text is None:
        return None
    try:
        at = parse_rfc3339(text)
    except ValueError as e:
        raise Unprocessable(str(e), pointer="/expires_at") from None
    with reading() as s:
        if at <= s.scalar(select(now())):
            raise Unprocessable(f"{text} is over; choose a time to come", pointer="/expires_at")
    return at
