"""The control process: `celery -A app.control worker --pool solo -B -Q control`. Its beat, a process of its own, asks for a sweep every few seconds.

The scrubber is a thread of it. Neither process is of use without the other: beat dies with the control process, and the control process ends, to be started again, when beat has died.
"""

from __future__ import annotations

import itertools
import logging
import os
import select
import threading
import time

from celery import signals
from celery.worker import state

from app import collect, recipients, retention, scrub, sweep, workers
from app.config import settings
from app.db import session
from app.idempotency import forget_old
from app.parent import die_with_parent
from app.queue import app as celery
from app.queue import flush_outbox
from app.storage import Storage

log = logging.getLogger(__name__)
_last_cleaning = 0.0
_folders = itertools.cycle(collect.FOLDERS)
_keyed = itertools.cycle(collect.KEYED)
_sealed = itertools.cycle(collect.SEALED)


@celery.task(name="control.sweep")
def run() -> None:
    """Leases and wake-ups each time; orphans, what has expired, and blobs once a minute at most."""
    global _last_cleaning
    with session() as s, s.begin():
        sweep.expire(s)
        sweep.rehome(s)
        sweep.rewake(s)
        workers.forget(s)
        recipients.forget(s)
    flush_outbox()
    if time.monotonic() - _last_cleaning > settings().cleaning:
        _last_cleaning = time.monotonic()
        with session() as s, s.begin():
            forget_old(s)
        storage = Storage()
        sweep.drop_orphans(storage)
        retention.expire()
        collect.collect(storage)
        collect.adopt(storage, [next(_folders)])
        collect.collect_keyed(storage, [next(_keyed)])
        collect.collect_sealed(storage, [folder := next(_sealed)])
        if folder == collect.SEALED[0]:  # a round of hours: all that is stored is listed for it
            collect.collect_keys(storage)


@signals.beat_embedded_init.connect
def tie_beat(**_) -> None:
    die_with_parent(os.getppid())


@signals.worker_ready.connect
def begin_scrubbing(**_) -> None:
    threading.Thread(target=scrub.keep_scrubbing, args=[threading.Event()], name="scrubber", daemon=True).start()


@signals.worker_ready.connect
def watch_beat(sender, **_) -> None:
    """A worker that was started without a beat of its own has none to watch."""
    if (beat := getattr(sender.controller, "beat", None)) and getattr(beat, "pid", None):
        threading.Thread(target=_end_without, args=[os.pidfd_open(beat.pid)], name="beat", daemon=True).start()


def _end_without(beat: int) -> None:
    select.select([beat], [], [])
    if state.should_stop is None and state.should_terminate is None:
        log.error("beat has died; this process ends, to be started again with a new one")
        os._exit(1)
