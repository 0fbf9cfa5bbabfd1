"""The process of the queue `webhooks`: `celery -A app.webhooks worker --pool solo -Q webhooks`.

A wake-up makes it send what is due until nothing is: many at a time, so that a server which is slow to answer holds up no other one. It talks to
servers that anybody may name, so it runs apart from everything that holds a key, and needs the database and the broker only.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from importlib.metadata import version

from app import deliveries
from app.courier import Courier, NotPublic, Undelivered
from app.db import session
from app.models import Delivery
from app.queue import app as celery
from app.queue import stopping
from app.webhook_secrets import current, headers

log = logging.getLogger(__name__)
AT_ONCE, PER_OWNER, PER_HOST = 32, 16, 4
_LOOK = 0.5  # seconds between looks for what has become due while others are under way
_AGENT = {"Content-Type": "application/json", "User-Agent": f"modelpress/{version('modelpress')}"}


@celery.task(name="webhooks.wake")
def wake() -> None:
    """Send everything that is due."""
    asyncio.run(deliver())


async def deliver(courier: Courier | None = None) -> None:
    """Until nothing is due and nothing under way; asked to stop, no further one is begun."""
    under_way: dict[asyncio.Task, Delivery] = {}
    async with courier or Courier() as courier, asyncio.TaskGroup() as group:
        while True:
            while len(under_way) < AT_ONCE and not stopping() and (taken := await asyncio.to_thread(_claim, [*under_way.values()])):
                under_way[group.create_task(_attempt(courier, taken))] = taken
            if not under_way:
                return
            done, _ = await asyncio.wait(under_way, timeout=_LOOK, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                del under_way[task]


def _claim(under_way: list[Delivery]) -> Delivery | None:
    hosts, owners = Counter(d.host for d in under_way), Counter(d.owner for d in under_way)
    with session() as s, s.begin():
        return deliveries.claim(s, [h for h, n in hosts.items() if n >= PER_HOST], [o for o, n in owners.items() if n >= PER_OWNER])


async def _attempt(courier: Courier, delivery: Delivery) -> None:
    """One attempt, and how it ended. When that cannot be written, the delivery is sent again once its lease has run out."""
    try:
        body = json.dumps(delivery.body, separators=(",", ":")).encode()
        keys = await asyncio.to_thread(_keys, delivery.owner)
        signed = headers(keys, delivery.id, int(time.time()), body)
        ended = await _post(courier, delivery, _AGENT | signed, body)
        await asyncio.to_thread(_write, delivery, ended)
    except Exception:
        log.exception("delivery %s: attempt %s broke off", delivery.id, delivery.attempt)


def _keys(owner: str) -> list[str]:
    with session() as s, s.begin():
        return current(s, owner)


async def _post(courier: Courier, delivery: Delivery, head: dict[str, str], body: bytes) -> dict | None:
    """None: it was taken. Else what `deliveries.failed` is to know."""
    try:
        answer = await courier.post(delivery.url, head, body)
    except NotPublic as e:
        return {"error": str(e), "final": True}
    except Undelivered as e:
        return {"error": str(e)}
    if 200 <= answer.status < 300:
        return None
    return {"error": f"the answer was {answer.status}", "final": answer.status == 410, "retry_after": answer.retry_after}


def _write(delivery: Delivery, ended: dict | None) -> None:
    with session() as s, s.begin():
        if ended is None:
            deliveries.delivered(s, delivery)
        else:
            log.info("delivery %s, attempt %s: %s", delivery.id, delivery.attempt, ended["error"])
            deliveries.failed(s, delivery, **ended)
