"""`modelpress api`, `worker`, `sign`, `control`, `webhooks`: one process of the service, for containers and for hosts with a supervisor of their own."""

from __future__ import annotations

import os
import sys

from app.home import make
from app.parts import command


def _become(part: str) -> None:
    """This process becomes the part, so that signals reach it."""
    make()
    os.execv(sys.executable, command(part))


def api() -> None:
    """Serve the API at MODELPRESS_HOST and MODELPRESS_PORT."""
    _become("api")


def worker() -> None:
    """Compress: take jobs of the queues that MODELPRESS_QUEUES names."""
    _become("worker")


def sign() -> None:
    """Sign results. Its home folder holds the key; no other process needs that folder."""
    _become("sign")


def control() -> None:
    """Sweep: what died is mended, what nobody needs is removed."""
    _become("control")


def webhooks() -> None:
    """Deliver webhooks."""
    _become("webhooks")
