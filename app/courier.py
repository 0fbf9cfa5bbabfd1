"""One HTTP request to a stranger's server, which may be hostile, or not be there at all.

The name is resolved once, every address that it has must be public, and the connection goes to one of those very addresses: a name that means
something else a moment later changes nothing. TLS (SNI and certificate) and the Host header keep the name. No redirect is followed, no proxy of the
environment is used, no connection is kept, and of the answer nothing but its head (100 KiB at most) is read.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpcore

from app.addresses import public
from app.config import settings

Resolver = Callable[[str, int], list[str]]
_ADDRESSES = 4  # of a name, that are tried
_lookups = ThreadPoolExecutor(128, thread_name_prefix="lookup")  # a lookup cannot be cut short: it holds its thread until the resolver gives up


class NotPublic(Exception):
    """The name leads to an address that webhooks are not sent to."""


class Undelivered(Exception):
    """Nobody answered, or not with HTTP; the message may be shown to the webhook's owner."""


@dataclass(frozen=True)
class Answer:
    status: int
    retry_after: str | None


def resolve(host: str, port: int) -> list[str]:
    """Every address of a name, in the order of preference (RFC 6724)."""
    return list(dict.fromkeys(found[4][0] for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))


class Checked(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were checked, and to nothing else."""

    def __init__(self, resolver: Resolver = resolve):
        self._resolver, self._network = resolver, httpcore.AnyIOBackend()

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None, socket_options: Iterable | None = None
    ) -> httpcore.AsyncNetworkStream:
        """Raises:
        NotPublic: one of the name's addresses is not public.
        httpcore.ConnectError: there is no such name, or nobody listens.
        """
        try:
            addresses = await asyncio.get_running_loop().run_in_executor(_lookups, self._resolver, host, port)
        except (OSError, UnicodeError):
            raise httpcore.ConnectError("the name is not known") from None
        if not settings().webhook_allow_private and not all(public(a) for a in addresses):
            raise NotPublic("the name leads to an address that is not public")
        error: Exception = httpcore.ConnectError("the name has no address")
        for address in addresses[:_ADDRESSES]:
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as e:
                error = e
        raise error


class Courier:
    """`async with Courier() as courier: await courier.post(...)`, any number of them at a time."""

    def __init__(self, resolver: Resolver = resolve):
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=httpcore.default_ssl_context(), max_connections=None, max_keepalive_connections=0, network_backend=Checked(resolver)
        )

    async def __aenter__(self) -> Courier:
        return self

    async def __aexit__(self, *_) -> None:
        await self._pool.aclose()

    async def post(self, url: str, headers: dict[str, str], body: bytes) -> Answer:
        """Send it. `webhook_timeout` holds for all of it, from the lookup to the last byte of the answer's head.

        Raises:
            NotPublic, Undelivered.
        """
        seconds = settings().webhook_timeout
        try:
            async with asyncio.timeout(seconds):
                each = {"timeout": {"connect": seconds / 2}}  # so that a second address has its turn
                async with self._pool.stream("POST", url, headers=headers, content=body, extensions=each) as response:
                    told = {name.lower(): value for name, value in response.headers}
                    return Answer(response.status, told.get(b"retry-after", b"").decode("ascii", "replace") or None)
        except (TimeoutError, httpcore.TimeoutException):
            raise Undelivered(f"no answer within {seconds:g} s") from None
        except httpcore.NetworkError as e:
            raise Undelivered(f"no connection: {str(e)[:300] or type(e).__name__}") from None
        except (httpcore.ProtocolError, httpcore.UnsupportedProtocol):
            raise Undelivered("the answer is not HTTP") from None
