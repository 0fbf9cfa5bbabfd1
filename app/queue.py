"""The Celery app and the outbox.

A message names a queue, not a job: it wakes whoever listens there, and the database says what is to be done. So a lost message costs time, never a
job, and one that arrives twice does nothing. Messages are acknowledged before the work starts; attempts are counted in the database.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import Counter

from celery import Celery, signals
from celery.worker import state
from kombu.exceptions import KombuError
from redis.exceptions import RedisError
from sqlalchemy import delete, select

from app import logs
from app.config import settings
from app.db import session
from app.home import private
from app.models import Outbox
from app.parts import APPS

log = logging.getLogger(__name__)
_wanted, _sending = threading.Event(), threading.Lock()
_MOST = 32  # wake-ups that lie in one queue; workers go on by themselves, and where nobody takes them more say nothing
_CHUNK = 1000  # rows in one statement
_SOCKET = {"socket_timeout": 5, "socket_connect_timeout": 2, "retry_on_timeout": False}

app = Celery("modelpress", broker=settings().broker_url)
app.conf.update(
    task_ignore_result=True,
    task_serializer="json",
    accept_content=["json"],
    task_create_missing_queues=True,
    worker_pool="solo",  # no process here computes anything itself
    worker_prefetch_multiplier=1,
    worker_disable_prefetch=True,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_connection_timeout=2,
    broker_transport_options=_SOCKET,
    beat_schedule={"sweep": {"task": "control.sweep", "schedule": settings().sweep, "options": {"queue": "control", "expires": settings().sweep}}},
)


@signals.setup_logging.connect
def _log(**_) -> None:
    """Of a Celery process; its own set-up is left out then."""
    private()
    logs.setup(next((part for part, target in APPS.items() if target in sys.argv), "celery"))


def stopping() -> bool:
    """Whether this Celery process has been asked to stop (SIGTERM): it ends what it does and begins nothing new."""
    return state.should_stop is not None or state.should_terminate is not None


def wake(topic: str, count: int = 1) -> None:
    """Send wake-ups to the queue `topic`, unless enough lie there: `compress.cpu.large` runs the task `compress.wake`, `sign` runs `sign.wake`.

    Args:
        count: how many workers there is something for.

    Raises:
        kombu.exceptions.OperationalError, redis.exceptions.RedisError: the broker does not answer.
    """
    with app.producer_or_acquire() as producer:
        lying = producer.channel.queue_declare(queue=topic).message_count
        for _ in range(min(count, _MOST - lying)):
            app.send_task(f"{topic.split('.')[0]}.wake", queue=topic, producer=producer, retry=False, ignore_result=True)


def flush_outbox() -> None:
    """Send what waits in the outbox. Called after a commit, and by the sweep for what was left behind.

    One thread of a process sends at a time, and goes on for those that come meanwhile: a broker that does not answer holds up one thread, not all.
    """
    _wanted.set()
    while _wanted.is_set() and _sending.acquire(blocking=False):
        try:
            _wanted.clear()
            _send()
        finally:
            _sending.release()


def _send() -> None:
    """A message for each row, as a worker each may be idle, up to a bound; the rows go once they are sent. While the broker is away they stay."""
    with session() as s, s.begin():
        waiting = s.execute(select(Outbox.id, Outbox.topic)).all()
    try:
        for topic, count in sorted(Counter(topic for _, topic in waiting).items()):
            wake(topic, count)
    except (KombuError, RedisError, OSError) as e:
        log.warning("the broker does not answer, the sweep will send again: %s", e)
        return
    for at in range(0, len(waiting), _CHUNK):
        with session() as s, s.begin():
            s.execute(delete(Outbox).where(Outbox.id.in_([ident for ident, _ in waiting[at : at + _CHUNK]])))
