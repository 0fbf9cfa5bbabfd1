"""The processes that the service is made of, each as a command line.

    api        any number, on any number of hosts, behind a proxy
    worker     one for each GPU, and as many as a host's cores and memory carry
    sign       holds the key
    control    sweeps; a second one does no harm
    webhooks   meets hostile hosts, so never beside the key
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from app.queues import served

APPS = {"worker": "worker.tasks", "sign": "app.sign", "control": "app.control", "webhooks": "app.webhooks"}
_OPTIONS = ("--pool", "solo", "--without-gossip", "--without-mingle", "--loglevel", "warning")
_BEAT = ("-B", "--scheduler", "celery.beat:Scheduler")  # keeps its times in memory, and no file
PARTS = ("api", *APPS)


def command(part: str, *, queues: Sequence[str] | None = None, name: str | None = None) -> list[str]:
    """The command line of a part. Args: queues: of a worker; default: those that its settings name. name: of the process, among others of its host."""
    if part == "api":
        return [sys.executable, "-m", "app.main"]
    listens = (queues or served()) if part == "worker" else [part]
    listen = ["-Q", ",".join(listens), "-n", f"{name or f'{part}-{os.getpid()}'}@%h"]
    return [sys.executable, "-m", "celery", "-A", APPS[part], "worker", *_OPTIONS, *(_BEAT if part == "control" else ()), *listen]
