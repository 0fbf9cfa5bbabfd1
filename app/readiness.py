"""Whether this service can do its work: what it needs, and what only part of it needs."""

from __future__ import annotations

import shutil
from collections import Counter
from functools import cache
from pathlib import Path

from alembic.script import ScriptDirectory
from sqlalchemy import func, or_, select, text
from sqlalchemy.orm import Session

from app import migrate, workers
from app.config import settings
from app.db import now, reading
from app.events import STATE
from app.findings import FAIL, WARN, Check, Trouble
from app.models import QUEUED, SIGNING, Job, JobEvent
from app.public_keys import held, published
from app.queue import app as celery
from app.storage import Storage

LOW, FULL = 2 << 30, 128 << 20  # bytes free on a disk
UNSIGNED = 120.0  # seconds that a result may wait before the sign process is missed


def checks(storage: Storage) -> dict[str, Check]:
    """By name. The first five are needed by everything; the others warn."""

    def stored() -> str:
        storage.check()
        return "it can be written to and read from"

    needed = {"database": database, "broker": broker, "storage": stored, "key": key, "jail": jail}
    return needed | {"queues": queues, "signing": signing, "disk": lambda: disk(settings().home) if kept() else "database and store are elsewhere"}


@cache
def newest() -> str:
    """The revision that this version of the code needs."""
    return ScriptDirectory.from_config(migrate.config()).get_current_head()


def database() -> str:
    with reading() as s:
        at = s.scalar(text("select version_num from alembic_version"))
    if at != newest():
        raise Trouble(f"the tables are at revision {at}, this version needs {newest()}: bring them there, or start the version that they belong to")
    return f"it answers, at revision {at}"


def broker() -> str:
    with celery.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=2)
    return "it answers"


def key() -> str:
    with reading() as s:
        keys, signs = published(s), held(s)
    if not keys:
        raise Trouble("no public key is published: start the sign process, which makes and publishes one, and look at its log")
    if not signs:
        raise Trouble("no sign process has a key that may sign: it is not there, or its key is missing, damaged or revoked, which its log says")
    return f"{len(keys)} published"


def jail() -> str:
    with reading() as s:
        live = workers.live(s)
    holding = [w for w in live if w.jail.get("holds")]
    loose = [w for w in live if w.queues and not w.jail.get("holds")]  # MODELPRESS_JAIL=best-effort
    if not live:
        raise Trouble("no worker is there: start one")
    if loose:
        raise Trouble(f"{len(loose)} workers of {len(live)} take jobs in a jail that does not hold (MODELPRESS_JAIL=best-effort)", WARN)
    if not holding:
        raise Trouble("no worker's jail holds on its machine: run `modelpress doctor` there")
    if len(holding) < len(live):
        raise Trouble(f"the jail of {len(live) - len(holding)} workers of {len(live)} does not hold, they take no jobs: run `modelpress doctor` there", WARN)
    return f"{len(live)} workers"


def queues() -> str:
    with reading() as s:
        waiting = dict(s.execute(select(Job.queue, func.count()).where(Job.state == QUEUED).group_by(Job.queue)).all())
        served = Counter(queue for w in workers.live(s) for queue in w.queues)
    if unserved := sorted(waiting.keys() - served.keys()):
        said = ", ".join(f"{waiting[queue]} in {queue}" for queue in unserved)
        raise Trouble(f"jobs wait that no worker takes: {said}; start a worker for it", WARN)
    return ", ".join(f"{queue}: {count}" for queue, count in sorted(served.items())) or "none is served"


def signing() -> str:
    with reading() as s:
        late = _unsigned(s)
    if late:
        raise Trouble(f"{late} results have waited to be signed for over {UNSIGNED:.0f} seconds: is the sign process there, and does it have its key?", WARN)
    return "nothing waits for long"


def _unsigned(s: Session) -> int:
    unclaimed = or_(Job.lease_until.is_(None), Job.lease_until < now())
    handed = select(func.max(JobEvent.created_at)).where(JobEvent.job_id == Job.id, JobEvent.kind == STATE).scalar_subquery()
    return s.scalar(select(func.count()).where(Job.state == SIGNING, unclaimed, Job.woken_at.is_not(None), handed < now() - UNSIGNED))


def disk(folder: Path) -> str:
    """Room on the disk of the home folder. A worker wants it for scratch, whatever else lies elsewhere."""
    free = shutil.disk_usage(folder).free
    said = f"{free / (1 << 30):.1f} GiB free on the disk of the home folder"
    if free < LOW:
        raise Trouble(f"{said}: make room", FAIL if free <= FULL and kept() else WARN)
    return said


def kept() -> bool:
    """Whether database or store lie in the home folder."""
    places = settings().database.partition("sqlite:///")[2], settings().store.partition("file://")[2]
    return any(place and Path(place).resolve().is_relative_to(settings().home.resolve()) for place in places)
