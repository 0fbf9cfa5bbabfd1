"""Rate limits: how many requests an owner may send in how much time, over all keys, counted in Redis where there is one, so that all API processes count together.

    RateLimit-Policy: "1s";q=1000;w=1, "60s";q=30000;w=60     what is allowed: q requests in w seconds
    RateLimit: "60s";r=25321;t=1                               the tightest: r are left, t seconds until there is one more

(draft-ietf-httpapi-ratelimit-headers-10.) The window slides, by the weighted count of this and the one before (`limits`). While Redis does not answer, each process
counts for itself: a broker that is away stops no request.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from functools import cache

from fastapi import Request
from limits import RateLimitItem, parse_many
from limits.aio.storage import MemoryStorage, Storage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from redis.exceptions import RedisError
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.config import settings
from app.errors import TooManyRequests

log = logging.getLogger(__name__)
AWAY = 5.0  # seconds for which a Redis that did not answer is not asked again
_SCHEMES = {"redis+socket://": "async+redis+unix://", "redis://": "async+redis://", "rediss://": "async+rediss://"}
_SOCKET = {"socket_timeout": 1, "socket_connect_timeout": 1}
_away_until = 0.0


@cache
def policies() -> tuple[RateLimitItem, ...]:
    """The shortest window first."""
    return tuple(sorted(parse_many(settings().rate_limit), key=lambda item: item.get_expiry())) if settings().rate_limit else ()


def _name(item: RateLimitItem) -> str:
    return f'"{item.get_expiry()}s"'


@cache
def _shared() -> SlidingWindowCounterRateLimiter | None:
    from limits.storage import storage_from_string

    url = settings().broker_url or ""
    for scheme, theirs in _SCHEMES.items():
        if url.startswith(scheme):
            made: Storage = storage_from_string(theirs + url.removeprefix(scheme), implementation="redispy", key_prefix="modelpress", **_SOCKET)
            return SlidingWindowCounterRateLimiter(made)
    return None


@cache
def _own() -> SlidingWindowCounterRateLimiter:
    return SlidingWindowCounterRateLimiter(MemoryStorage())


async def count(request: Request, owner: str) -> None:
    """Count a request of an owner, and have its answer say what is left.

    Raises:
        TooManyRequests.
    """
    global _away_until
    if not policies():
        return
    shared = _shared() if time.monotonic() >= _away_until else None
    try:
        good, left = await _hit(shared or _own(), owner)
    except (RedisError, OSError) as e:
        _away_until = time.monotonic() + AWAY
        log.warning("Redis does not answer, this process counts requests by itself: %s", e)
        good, left = await _hit(_own(), owner)
    tightest = min(left, key=lambda item: left[item][0] / item.amount)
    remaining, reset = left[tightest]
    request.scope.setdefault("state", {})["rate_headers"] = {
        "RateLimit-Policy": ", ".join(f"{_name(item)};q={item.amount};w={item.get_expiry()}" for item in policies()),
        "RateLimit": f"{_name(tightest)};r={remaining};t={reset}",
    }
    if not good:
        said = " and ".join(f"{item.amount} in {item.get_expiry()} s" for item in policies())
        error = TooManyRequests(f"more requests than the {said} that one owner may send; come back in {reset} s")
        error.retry_after = reset
        raise error


async def _hit(limiter: SlidingWindowCounterRateLimiter, owner: str) -> tuple[bool, dict[RateLimitItem, tuple[int, int]]]:
    """Whether the request is within every policy, and (requests left, seconds until there are more) of each. One beyond a policy counts towards none after it."""
    who, good, left = hashlib.sha256(owner.encode(errors="surrogatepass")).hexdigest()[:32], True, {}
    for item in policies():
        good = good and await limiter.hit(item, who)
        found = await limiter.get_window_stats(item, who)
        left[item] = (found.remaining if good else 0, max(1, math.ceil(found.reset_time - time.time())))
        if not good:
            break
    return good, left


class Told:
    """ASGI middleware: puts the headers on whatever answer comes of the request."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                for name, value in scope.get("state", {}).get("rate_headers", {}).items():
                    MutableHeaders(scope=message)[name] = value
            await send(message)

        await self.app(scope, receive, sent)
