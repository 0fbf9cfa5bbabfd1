"""The control process: `celery -A app.control worker --pool solo -B -Q control`. Its beat asks for a sweep every few seconds."""

from __future__ import annotations

import os
import time

from celery import signals

from app import sweep
from app.config import settings
from app.db import session
from app.parent import die_with_parent
from app.queue import app as celery
from app.queue import flush_outbox
from app.storage import Storage

_last_cleaning = 0.0


@celery.task(name="control.sweep")
def run() -> None:
    """Leases and wake-ups each time; orphans and blobs once a minute at most."""
    global _last_cleaning
    with session() as s, s.begin():
        sweep.expire(s)
        sweep.rewake(s)
    flush_outbox()
    if time.monotonic() - _last_cleaning > settings().cleaning:
        _last_cleaning = time.monotonic()
        storage = Storage()
        sweep.drop_orphans(storage)
        sweep.collect(storage)


@signals.beat_embedded_init.connect
def tie_beat(**_) -> None:
    die_with_parent(os.getppid())
