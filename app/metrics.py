"""What Prometheus is told of the service as a whole: from the database, at each scrape, so that every API process says the same.

Figures that only grow come from `app.meters`. The others are counted, along indexes and over what is not over yet: a million jobs that have ended
cost nothing here.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import case, func, or_, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app import meters
from app.db import now, reading
from app.models import QUEUED, RUNNING, SIGNING, Blob, Delivery, Job, Outbox, Upload
from app.workers import live

log = logging.getLogger(__name__)
FRESH = 2.0  # seconds that an answer stays good
FRESH_STORAGE = 60.0  # seconds; the blobs are counted one by one

_STAGE = ("stage", "method", "device")
SUMMARIES = {
    "stage_seconds": ("stage_seconds", "How long stages of jobs took.", _STAGE),
    "ends": ("job_seconds", "Jobs that ended, and the seconds from their submission to their end.", ("state", "type", "cached")),
}
COUNTERS = {
    "stage_bytes": ("stage_bytes", "Bytes that stages of jobs worked on.", _STAGE),
    "leases_expired": ("leases_expired", "Claims whose holder went silent.", ("queue",)),
    "requeues": ("requeues", "Jobs that went back to their queue.", ("why",)),
    "scrubbed": ("scrubbed_bytes", "Bytes of storage that the scrubber has read through.", ()),
    "damage": ("damaged_blobs", "Blobs that were found damaged: their bytes are others, or missing.", ("found",)),
    "deliveries": ("webhook_attempts", "Attempts to deliver a webhook.", ("outcome",)),
}
"""Name of a meter -> what it is called here, its help and its labels."""


class Service(Collector):
    """What the database says, remembered for a moment: however often it is asked, the database is not."""

    def __init__(self):
        self._lock, self._told, self._told_at = threading.Lock(), [], -FRESH
        self._stored, self._stored_at = [], -FRESH_STORAGE

    def describe(self) -> Iterable[Metric]:
        return []  # nothing is asked of the database before the first scrape

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            if time.monotonic() - self._told_at > FRESH:
                self._told, self._told_at = self._look(), time.monotonic()
            yield from self._told

    def _look(self) -> list[Metric]:
        up = GaugeMetricFamily("modelpress_database_up", "Whether the database answered this scrape; without it the rest is missing.")
        try:
            with reading() as s:
                found = [*summed(s), *under_way(s), *waiting(s), *working(s)]
                if time.monotonic() - self._stored_at > FRESH_STORAGE:
                    self._stored, self._stored_at = [*stored(s)], time.monotonic()
            up.add_metric([], 1)
            return [up, *found, *self._stored]
        except SQLAlchemyError as e:
            log.warning("a scrape without the database: %s", type(e).__name__)
            up.add_metric([], 0)
            return [up]


def summed(s: Session) -> Iterator[Metric]:
    """The meters."""
    summaries = {n: SummaryMetricFamily(f"modelpress_{name}", about, labels=labels) for n, (name, about, labels) in SUMMARIES.items()}
    counters = {n: CounterMetricFamily(f"modelpress_{name}", about, labels=labels) for n, (name, about, labels) in COUNTERS.items()}
    for name, labels, count, total in meters.all_meters(s):
        if name in SUMMARIES:
            summaries[name].add_metric([labels.get(k, "") for k in SUMMARIES[name][2]], count, total)
        elif name in COUNTERS:
            counters[name].add_metric([labels.get(k, "") for k in COUNTERS[name][2]], count)
    yield from summaries.values()
    yield from counters.values()


def under_way(s: Session) -> Iterator[Metric]:
    """Jobs that have not ended."""
    jobs = GaugeMetricFamily("modelpress_jobs", "Jobs that have not ended.", labels=("queue", "state"))
    age = GaugeMetricFamily("modelpress_queue_age_seconds", "How long the oldest job of a queue has waited to be started.", labels=("queue",))
    grouped = select(Job.queue, Job.state, func.count(), now() - func.min(Job.created_at))
    for queue, state, count, oldest in s.execute(grouped.where(Job.state.in_([QUEUED, RUNNING, SIGNING])).group_by(Job.queue, Job.state)):
        jobs.add_metric([queue, state], count)
        if state == QUEUED:
            age.add_metric([queue], max(0.0, oldest))
    unsigned = select(func.count()).where(Job.state == SIGNING, or_(Job.lease_until.is_(None), Job.lease_until < now()))
    yield from (jobs, age, _gauge("modelpress_signing_backlog", "Results that wait for the sign process.", s.scalar(unsigned)))


def waiting(s: Session) -> Iterator[Metric]:
    """What else is not over yet."""
    uploads = select(func.count()).where(Upload.artifact_id.is_(None), Upload.error.is_(None), Upload.expires_at > now())
    yield _gauge("modelpress_uploads_open", "Uploads that were begun and are not complete.", s.scalar(uploads))
    due = select(func.count()).where(Delivery.due_at.is_not(None))
    yield _gauge("modelpress_webhooks_pending", "Webhooks that are still to be delivered.", s.scalar(due))
    yield _gauge("modelpress_outbox", "Wake-ups that the broker has not taken.", s.scalar(select(func.count()).select_from(Outbox)))


def working(s: Session) -> Iterator[Metric]:
    workers = GaugeMetricFamily("modelpress_workers", "Workers that are alive, by each queue that they take.", labels=("queue", "device"))
    for (queue, device), count in Counter((queue, w.device) for w in live(s) for queue in w.queues).items():
        workers.add_metric([queue, device], count)
    yield workers


def stored(s: Session) -> Iterator[Metric]:
    blobs = GaugeMetricFamily("modelpress_storage_blobs", "Blobs, by whether something refers to them or a collection has marked them.", labels=("state",))
    size = GaugeMetricFamily("modelpress_storage_bytes", "Bytes of these blobs.", labels=("state",))
    count = dict.fromkeys(("referenced", "marked"), (0, 0))
    state = case((Blob.marked_at.is_(None), "referenced"), else_="marked")
    count |= {name: (n, total) for name, n, total in s.execute(select(state, func.count(), func.sum(Blob.size)).group_by(state))}
    for name, (n, total) in count.items():
        blobs.add_metric([name], n)
        size.add_metric([name], float(total))
    yield from (blobs, size)


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(name, about, value=value)
