"""With what webhooks are signed: one secret per owner, as Standard Webhooks has it (https://www.standardwebhooks.com).

    webhook-id          the delivery's id, the same on every attempt
    webhook-timestamp   seconds since the epoch, of this attempt
    webhook-signature   v1,BASE64(HMAC-SHA256(secret, id "." timestamp "." body)), once more after a space while an older secret still counts
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets

from sqlalchemy import select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app import audit
from app.db import now
from app.models import WebhookSecret

PREFIX = "whsec_"
OVERLAP = 24 * 3600.0  # seconds that the secret before a rotation goes on signing


def _new() -> str:
    return PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def secret_of(s: Session, owner: str) -> WebhookSecret:
    """The owner's secret, made when first asked for."""
    insert = (sqlite if s.get_bind().dialect.name == "sqlite" else postgresql).insert(WebhookSecret)
    if s.execute(insert.values(owner=owner, secret=_new()).on_conflict_do_nothing().returning(WebhookSecret.owner)).first() is not None:
        audit.record(s, "webhook.secret.create", owner)
    return s.get_one(WebhookSecret, owner, populate_existing=True)


def rotate(s: Session, owner: str) -> WebhookSecret:
    """A new secret. The one before signs along for a day, so that receivers can change over without losing anything."""
    secret_of(s, owner)
    values = {"previous": WebhookSecret.secret, "previous_until": now() + OVERLAP, "secret": _new(), "created_at": now()}
    s.execute(update(WebhookSecret).where(WebhookSecret.owner == owner).values(values), execution_options={"synchronize_session": False})
    audit.record(s, "webhook.secret.rotate", owner)
    return s.get_one(WebhookSecret, owner, populate_existing=True)


def current(s: Session, owner: str) -> list[str]:
    """Every secret of the owner that counts now, the newest first."""
    newest = secret_of(s, owner).secret
    previous = s.scalar(select(WebhookSecret.previous).where(WebhookSecret.owner == owner, WebhookSecret.previous_until > now()))
    return [newest, previous] if previous else [newest]


def headers(keys: list[str], ident: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers over a body, signed with each of the secrets."""
    message = f"{ident}.{timestamp}.".encode() + body
    digests = [hmac.digest(base64.b64decode(key.removeprefix(PREFIX)), message, hashlib.sha256) for key in keys]
    signatures = " ".join("v1," + base64.b64encode(d).decode() for d in digests)
    return {"webhook-id": ident, "webhook-timestamp": str(timestamp), "webhook-signature": signatures}
