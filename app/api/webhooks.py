"""Webhooks: the secret that signs them, and what became of each."""

from __future__ import annotations

from fastapi import APIRouter, BackgroundTasks, Response
from pydantic import BaseModel

from app import audit, deliveries, webhook_secrets
from app.api.paging import Cursor, Limit, page
from app.auth import Owner, WritingOwner
from app.db import reading, session
from app.models import Delivery, WebhookSecret
from app.owned import owned
from app.queue import flush_outbox
from app.times import rfc3339

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])


class SecretView(BaseModel):
    """`previous_until`: until when the secret before this one signs along; None where there was none."""

    secret: str
    created_at: str
    previous_until: str | None


class DeliveryView(BaseModel):
    """`id` is what the receiver sees as `webhook-id`. `state`: pending, delivered, or failed (given up). `error` is the last attempt's."""

    id: str
    job: str
    type: str
    url: str
    state: str
    attempt: int
    due_at: str | None
    error: str | None
    delivered_at: str | None
    created_at: str


class Deliveries(BaseModel):
    items: list[DeliveryView]
    next: str | None


def _secret(found: WebhookSecret, response: Response) -> SecretView:
    response.headers["Cache-Control"] = "no-store"
    return SecretView(secret=found.secret, created_at=rfc3339(found.created_at), previous_until=rfc3339(found.previous_until))


def _view(d: Delivery) -> DeliveryView:
    state = "delivered" if d.delivered_at else "pending" if d.due_at else "failed"
    times = {name: rfc3339(getattr(d, name)) for name in ("due_at", "delivered_at", "created_at")}
    return DeliveryView(id=d.id, job=d.job_id, type=d.body["type"], url=d.url, state=state, attempt=d.attempt, error=d.error, **times)


@router.get("/secret")
def get_secret(owner: WritingOwner, response: Response) -> SecretView:
    """What your webhooks are signed with (Standard Webhooks); made when first asked for."""
    with session() as s, s.begin():
        return _secret(webhook_secrets.secret_of(s, owner), response)


@router.post("/secret/rotate")
def rotate_secret(owner: Owner, response: Response) -> SecretView:
    """A new secret. The one before signs along for 24 hours."""
    with session() as s, s.begin():
        return _secret(webhook_secrets.rotate(s, owner), response)


@router.get("/deliveries")
def list_deliveries(owner: Owner, limit: Limit = 50, cursor: Cursor = None) -> Deliveries:
    """The newest first."""
    with reading() as s:
        rows, following = page(s, Delivery, owner, cursor, limit)
        return Deliveries(items=[_view(d) for d in rows], next=following)


@router.post("/deliveries/{ident}/retry", status_code=202)
def retry_delivery(ident: str, owner: Owner, after: BackgroundTasks) -> DeliveryView:
    """Send it once more, now, under the same id."""
    with session() as s, s.begin():
        found = owned(s, Delivery, ident, owner)
        deliveries.retry(s, found)
        audit.record(s, "webhook.retry", owner, ident)
        s.refresh(found)
    after.add_task(flush_outbox)
    return _view(found)
