"""The Celery worker of a `compress` queue: `celery -A worker.tasks worker --pool solo -Q compress.cpu`.

A wake-up makes it claim jobs until there is none. The pool is `solo`: this process parses nothing and computes nothing (the child does), so a second
one would only be one more to kill; what solo cannot do, answer remote control while a job runs, nobody asks of it. One worker process per GPU.
"""

from __future__ import annotations

import logging

from celery import signals

from app import jobs, queues, sweep
from app.config import settings
from app.pause import Pause
from app.queue import app as celery
from app.queue import stopping
from app.settled import settled
from app.storage import Storage
from worker import gpu, gpu_probe
from worker.attempt import Attempt
from worker.jailed import exposed, probe
from worker.presence import Presence
from worker.zygote import Zygote, serving

log = logging.getLogger(__name__)
_zygotes: dict[tuple[str, ...], Zygote] = {}
_presence: list[Presence] = []  # this process's one, once it has started


@celery.task(name="compress.wake")
def wake() -> None:
    """Claim and run jobs of this worker's queues until there is none. While the store is away, seldom."""
    sweep.drop_scratch()
    storage, pause = Storage(), Pause(stopping)
    while not stopping():
        me = _presence[0]
        job = settled(lambda s: jobs.claim(s, *me.queues, worker=me), lambda s: jobs.claimed(s, me.id), settings().lease)
        if job is None:
            return
        pause.over() if Attempt(job, storage, _zygotes, stopping, me.identity).run() else pause.wait()


@signals.worker_init.connect
def prepare(**_) -> None:
    """Prove the jail, and a GPU inside it, before the first job, and start the zygote. Without a jail that holds, this worker takes no job, unless
    MODELPRESS_JAIL=best-effort asks for it."""
    report = probe() | {"level": settings().jail}
    works = report["holds"] or settings().jail == "best-effort"
    if folder := exposed(settings().home):
        report |= {"holds": False, "error": f"{settings().home} lies in {folder}, which children may read; choose another home"}
        works = False
    taken, device = queues.served(), "cpu"
    if works and set(taken) & set(queues.GPU):
        device, why = gpu_probe.probe()
        report |= {"gpu": why or device, "holds": report["holds"] and not why}
        works = works and not why
        if not why:
            gpu.compile_kernels()
    _presence[:] = [Presence(taken if works else (), device, report)]
    _presence[0].start()
    if not works:
        raise SystemExit(f"no job can be run here: {report}; a worker needs Landlock (Linux 6.2 or later) and seccomp, on x86_64 or aarch64")
    if not report["holds"]:
        log.warning("strangers' files are parsed in a jail that does not hold, as MODELPRESS_JAIL=best-effort asks: %s", report)
    serving(_zygotes, "worker.__main__:run").start()


@signals.worker_shutdown.connect
def stop(**_) -> None:
    _presence[0].stop()
    for zygote in _zygotes.values():
        zygote.close()
