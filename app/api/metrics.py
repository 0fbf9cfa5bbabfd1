"""`/metrics`, for Prometheus. It tells how busy the service is, so it is not for everyone."""

from __future__ import annotations

import hmac
from ipaddress import ip_address

from fastapi import APIRouter, Request, Response
from prometheus_client.exposition import choose_encoder

from app.config import settings
from app.errors import Unauthorized

router = APIRouter(tags=["health"])
_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip", "via")


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}, "description": "Prometheus' text format, or OpenMetrics."}})
def metrics(request: Request) -> Response:
    """Needs MODELPRESS_METRICS_TOKEN as a bearer key where that is set; else only this machine is answered, and no proxy on it."""
    _admit(request)
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(request.app.state.traffic.registry), media_type=content_type)


def _admit(request: Request) -> None:
    """Raises:
    Unauthorized: a wrong token, or none is set and the client is not on this machine.
    """
    token = settings().metrics_token
    if token is None:
        local = request.client is not None and ip_address(request.client.host).is_loopback
        if not local or any(h in request.headers for h in _FORWARDED):
            raise Unauthorized("metrics are shown to this machine alone; set MODELPRESS_METRICS_TOKEN and send it: `Authorization: Bearer TOKEN`")
    elif not hmac.compare_digest(request.headers.get("authorization", "").encode(), f"Bearer {token}".encode()):
        raise Unauthorized("send the token of MODELPRESS_METRICS_TOKEN: `Authorization: Bearer TOKEN`")
