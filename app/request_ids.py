"""Every request has an id: the client's own `X-Request-Id` where it is a word, else a new one. It comes back in the answer's header and in problems, and
stands in every line that is logged for the request, and for the job that it made. ASGI middleware."""

from __future__ import annotations

import re
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.logs import about

HEADER = "X-Request-Id"
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}", re.ASCII)


class Identified:
    """The middleware, around all others."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = Headers(scope=scope).get(HEADER, "")
        ident = given if _WORD.fullmatch(given) else secrets.token_hex(8)

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = ident
            await send(message)

        with about(request=ident):
            await self.app(scope, receive, sent)
