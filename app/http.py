"""What HTTP itself must keep to, before any endpoint is asked.

`Protocol` (uvicorn's, on h11, whose leniency `app.wire` takes away) bounds the time that headers may take and answers what is not HTTP. `Gate` (ASGI, around everything) bounds headers,
address and pace, and sees to it that a request which was answered before it was read ends its connection.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import h11
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.config import settings
from app.errors import HeadersTooLarge, MalformedRequest, ModelpressError, RequestTimeout, UnsupportedMediaType, UriTooLong
from app.logs import request_id
from app.wire import Strict

HEADER_TIMEOUT = 15.0  # seconds from a request's first byte to the end of its headers
MAX_HEADERS = 100
MAX_HEADER_BYTES = 64 << 10  # of what h11 holds before a request is complete, the address included
MAX_TARGET = 8 << 10
MIN_RATE, GRACE = 1 << 10, 30.0  # bytes a second that a body must arrive with, after so many seconds of waiting for it
LINGER_BYTES, LINGER = 32 << 20, 2.0  # how much of an unread body is still taken, so that the sender gets to read why: all that the proxy lets through
SHUT = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""What every answer tells browsers and caches that does not tell them something else: run nothing, show it in no frame, give it to no other site, keep it
nowhere."""
PAGES = ("/docs", "/docs/oauth2-redirect")  # load scripts of their own
STALL = 120.0  # seconds that a client may take to read one piece


class Protocol(H11Protocol):
    """Closes a connection whose headers do not end in time; says what is wrong as a problem document, and reads nothing after that."""

    _late: asyncio.TimerHandle | None = None
    _parting = 0  # bytes that are still thrown away: who is closed upon while he sends may never read why

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self.conn._receive_buffer = Strict()
        self._watch()

    def connection_lost(self, exc) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._parting:
            self._parting -= len(data)
            if self._parting <= 0:
                self.transport.abort()
            return
        super().data_received(data)
        if self._parting:
            return
        self._watch() if self.conn.their_state is h11.IDLE else self._unwatch()

    def send_400_response(self, msg: str) -> None:
        hint = getattr(sys.exc_info()[1], "error_status_hint", 400)
        error: ModelpressError = MalformedRequest("this is not HTTP as RFC 9112 has it")
        if hint == 431:
            held = self.conn.trailing_data[0]
            whole = self.conn.our_state is not h11.IDLE or b"\r\n" in held
            error = HeadersTooLarge(f"the headers have more than {MAX_HEADER_BYTES} bytes") if whole else UriTooLong(f"the address has more than {MAX_TARGET} bytes")
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(error.problem()).encode()
            headers = [("content-type", "application/problem+json"), ("content-length", str(len(body))), ("connection", "close")]
            for event in (h11.Response(status_code=error.status, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        if self.cycle and not self.cycle.response_complete:
            self.cycle.disconnected, self.cycle.waiting_for_100_continue = True, False
            self.cycle.message_event.set()
        if self.transport.is_closing():
            return
        self._parting = LINGER_BYTES
        self._unwatch()
        self._unset_keepalive_if_required()
        self._late = self.loop.call_later(LINGER, self.transport.close)
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def shutdown(self) -> None:
        self.transport.close() if self._parting else super().shutdown()

    def _watch(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(HEADER_TIMEOUT, self.transport.close)

    def _unwatch(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


class Gate:
    """ASGI middleware. Raises nothing: refusals are answered here, and what fails while a body is read is raised into the endpoint."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        body = _Body(receive, Headers(scope=scope))

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"  # an address may be a link that opens what it names
                for name, value in SHUT.items():
                    if name not in headers and scope["path"] not in PAGES:
                        headers[name] = value
                if body.last or not body.whole:
                    headers["Connection"] = "close"
            elif not message.get("more_body") and not body.whole:
                await body.linger()
            async with asyncio.timeout(STALL):
                await send(message)

        try:
            _check(scope)
        except ModelpressError as e:
            body.last = True
            return await refuse(e, guarded)
        await self.app(scope, body.receive, guarded)


async def refuse(error: ModelpressError, send: Send) -> None:
    body = json.dumps(error.problem() | {"request_id": request_id.get()}).encode()
    headers = [(b"content-type", b"application/problem+json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _check(scope: Scope) -> None:
    headers = Headers(scope=scope)
    if len(headers) > MAX_HEADERS:
        raise HeadersTooLarge(f"the request has {len(headers)} headers; at most {MAX_HEADERS} are taken")
    if (size := sum(len(name) + len(value) for name, value in scope["headers"])) > MAX_HEADER_BYTES:
        raise HeadersTooLarge(f"the headers have {size} bytes; at most {MAX_HEADER_BYTES} are taken")
    if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > MAX_TARGET:
        raise UriTooLong(f"the address has more than {MAX_TARGET} bytes")
    if scope["http_version"] not in ("1.0", "1.1"):
        raise MalformedRequest(f"HTTP/{scope['http_version']} is not spoken here; HTTP/1.1 is")
    if "transfer-encoding" in headers and ("content-length" in headers or scope["http_version"] == "1.0"):
        raise MalformedRequest("a request has Content-Length or Transfer-Encoding, never both, and the latter in HTTP/1.1 alone")
    if (encoding := headers.get("content-encoding", "identity").strip().lower()) not in ("identity", ""):
        raise UnsupportedMediaType(f"Content-Encoding {encoding[:60]!r} is not undone here; send the bytes as they are")


class _Body:
    """The request's body on its way in: its pace, and whether all of it was read."""

    def __init__(self, receive: Receive, headers: Headers):
        self._receive = receive
        self.whole = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
        self.last = False  # nothing after it is read
        self.asked = headers.get("expect", "").lower() == "100-continue"
        self.bytes, self.waited = 0, 0.0

    async def receive(self) -> Message:
        if self.whole:
            return await self._receive()  # it can only be the client's farewell: that may take as long as it likes
        start = time.monotonic()
        try:
            async with asyncio.timeout(settings().upload_idle_timeout):
                message = await self._receive()
        except TimeoutError:
            raise RequestTimeout(f"nothing arrived for {settings().upload_idle_timeout:g} seconds") from None
        self.waited += time.monotonic() - start
        if message["type"] == "http.request":
            self.bytes += len(message.get("body", b""))
            self.whole = not message.get("more_body", False)
            if self.waited > GRACE and self.bytes < MIN_RATE * self.waited:
                raise RequestTimeout(f"the body arrives with less than {MIN_RATE} bytes a second")
        return message

    async def linger(self) -> None:
        """Take some of what is still on its way. Who waits for a 100 Continue sends nothing more."""
        if self.asked and not self.bytes:
            return
        limit = self.bytes + LINGER_BYTES
        try:
            async with asyncio.timeout(LINGER):
                while not self.whole and self.bytes < limit:
                    if (await self.receive())["type"] != "http.request":
                        return
        except (TimeoutError, RequestTimeout):
            pass
