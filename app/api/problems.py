"""Every error leaves as `application/problem+json` (RFC 9457), through here."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from app.errors import InsufficientScope, MalformedRequest, MethodNotAllowed, ModelpressError, NotFound, RangeNotSatisfiable, Unauthorized, Unavailable
from app.logs import request_id
from app.settled import away

log = logging.getLogger(__name__)

_TYPES = {"type": "string", "title": "string", "status": "integer", "detail": "string", "pointer": "string", "request_id": "string"}
_SCHEMA = {"type": "object", "required": ["type", "title", "status", "detail"], "properties": {name: {"type": kind} for name, kind in _TYPES.items()}}
DOCUMENTED = {
    "default": {
        "description": "A problem (RFC 9457). `type` is stable; `pointer` leads into the request's own body.",
        "content": {"application/problem+json": {"schema": _SCHEMA}},
    }
}
"""For the OpenAPI document."""


def answer(error: ModelpressError, headers: dict[str, str] | None = None) -> Response:
    headers = dict(headers or {})
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = 'Bearer realm="modelpress"'
    if isinstance(error, InsufficientScope):
        headers["WWW-Authenticate"] = f'Bearer realm="modelpress", error="insufficient_scope", scope="{error.extra["scope"]}"'
    if isinstance(error, RangeNotSatisfiable):
        headers["Content-Range"] = f"bytes */{error.extra['size']}"
    return JSONResponse(error.problem() | {"request_id": request_id.get()}, error.status, headers, media_type="application/problem+json")


async def ours(request: Request, error: ModelpressError) -> Response:
    if error.status >= 500:
        log.error("%s %s: %s: %s", request.method, request.url.path, error.type, error)
    return answer(error)


async def of_starlette(request: Request, error: HTTPException) -> Response:
    if error.status_code == 404:
        return answer(NotFound("there is nothing at this address; /docs lists what there is"))
    if error.status_code == 405:
        return answer(MethodNotAllowed(f"{request.method[:20]} is not allowed here"), error.headers)
    made = MalformedRequest(str(error.detail))
    made.status = error.status_code
    return answer(made, error.headers)


async def of_parameters(request: Request, error: RequestValidationError) -> Response:
    first = error.errors()[0]
    name = ".".join(str(p) for p in first["loc"][1:])
    return answer(MalformedRequest(f"{first['loc'][0]} parameter {name}: {first['msg']}"))


async def of_the_database(request: Request, error: Exception) -> Response:
    if not away(error):
        raise error
    log.error("%s %s: the database does not answer: %s", request.method, request.url.path, error)
    return answer(Unavailable("the database does not answer just now; try again"))


async def of_nobody(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=400)  # nobody reads it


async def unexpected(request: Request, error: Exception) -> Response:
    return answer(ModelpressError("an unexpected error; it has been logged"))  # Starlette raises it again, and uvicorn logs it


def install(app: FastAPI) -> None:
    app.add_exception_handler(ModelpressError, ours)
    app.add_exception_handler(HTTPException, of_starlette)
    app.add_exception_handler(RequestValidationError, of_parameters)
    app.add_exception_handler(ClientDisconnect, of_nobody)
    app.add_exception_handler(DBAPIError, of_the_database)
    app.add_exception_handler(PoolTimeout, of_the_database)
    app.add_exception_handler(Exception, unexpected)
