"""The `sign` queue: hash what the worker handed over once more, sign it, and make it visible, all in the one process that holds the key.

    handoff    <prefix>/files/<path>, <prefix>/report.json, and the digests that the worker saw
    result     blobs, and beside them SHA256SUMS, SHA256SUMS.sig, model.sig, provenance.json, report.json

What is signed was hashed here, from storage. The artifact, its signatures and the job's end are one transaction; no unsigned result is ever visible.
The handoff of a cached result has no prefix: its files are blobs, which are hashed as well.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager

from celery.signals import worker_init, worker_shutdown
from sqlalchemy import select
from sqlalchemy.orm import Session

from app import customer_keys, gates, jobs, meters, recipients
from app.blobs import hold, keep, refer
from app.chunks import Chunked
from app.config import settings
from app.db import reading, session
from app.forecast import Forecast
from app.errors import CustomerKeyGone, GateFailed, ModelpressError, StorageDamaged, StorageFull, Unavailable
from app.logs import about
from app.models import SIGNING, Artifact, ArtifactFile, Companion, Job, Signature, new_id
from app.pause import Pause
from app.public_keys import keep_published, publish
from app.quarantine import absolve
from app.queue import app as celery
from app.queue import flush_outbox, stopping
from app.retention import until
from app.rotation import current
from app.strict import parse_json
from app.settled import settled
from app.signing import PrivateKey, key_id
from app.statement import artifact_digest, canonical, provenance, sign_artifact
from app.storage import Storage
from app.verify import safe_path

log = logging.getLogger(__name__)
_identity: list[recipients.Identity] = []  # this process's one, once it has started
SIGNATURES = ("SHA256SUMS.sig", "model.sig", "provenance.json")  # of the sidecars, those that a key made
MAX_REPORT = 256 << 20  # bytes of a cached report, which is parsed; 100,000 tensors take some 40 MB


class LeaseLost(Exception):
    """Somebody else has the job now, or it has ended: stop, and write nothing."""


@worker_init.connect
def prepare(**_) -> None:
    """At the very first start the key is made before any job comes: the service is not ready without one. Its public half is published."""
    try:
        log.info("signing with key %s", key_id(current(settings().keys).public_key()))
    except Unavailable as e:
        log.error("nothing can be signed: %s", e)
    _identity[:] = [recipients.Identity(f"{socket.gethostname()[:60]}-{os.getpid()}-{secrets.token_hex(4)}", (jobs.SIGN_QUEUE,))]
    _identity[0].keep_told()
    threading.Thread(target=keep_published, args=[settings().keys], name="keys", daemon=True).start()


@worker_shutdown.connect
def leave(**_) -> None:
    for identity in _identity:
        with session() as s, s.begin():
            identity.leave(s)


@celery.task(name="sign.wake")
def wake() -> None:
    """Sign every job that waits for it. Without a key none is claimed: they wait until there is one."""
    try:
        key = current(settings().keys)
    except Unavailable as e:
        log.error("nothing can be signed: %s", e)
        return
    publish(settings().keys)  # no signature becomes visible before its key
    storage, pause = Storage(), Pause(stopping)
    while not stopping():
        job = settled(lambda s: jobs.claim_signing(s, _identity[0].id if _identity else None))  # one whose answer is lost waits for its lease to end, as if this process had died
        if job is None:
            return
        with about(request=job.request_id, job_id=job.id, attempt=job.sign_attempt):
            served = sign(job, key, storage, _identity[0] if _identity else None)
        flush_outbox()
        pause.over() if served else pause.wait()


def sign(job: Job, key: PrivateKey, storage: Storage, identity: recipients.Identity | None = None) -> bool:
    """One claimed job, to its end. What is wrong with the result ends it as failed; anything unforeseen leaves it to its lease and another attempt.

    Returns:
        False when the store was away or full: the job was given back, and the next one would fare no better just now.
    """
    report, started, storage = None, time.monotonic(), storage.of(job.owner)
    try:
        with _lease(job) as advance:
            results = _opened(job, storage, identity)
            files = {f["path"]: f for f in job.handoff["files"]}
            for path, file in files.items():
                if not safe_path(path):
                    raise StorageDamaged(f"the result has a file {path[:200]!r}, which would leave its folder")
                _take(results, job, f"files/{path}", file, advance)
            report = _judged(storage, job, advance)
            _finish(storage, results, job, key, list(files.values()), report, started)
        if prefix := job.handoff.get("prefix"):
            storage.delete_all(prefix)
        log.info("job %s is signed", job.id)
    except LeaseLost:
        log.warning("job %s: the lease is lost; nothing was made visible", job.id)
    except (StorageFull, Unavailable) as e:
        log.error("job %s will be tried again: %s", job.id, e)
        settled(lambda s: jobs.unclaim_signing(s, job.id, job.fence), seconds=settings().lease)
        return False
    except ModelpressError as e:
        log.error("job %s failed while it was signed: %s", job.id, e)
        report_sha256 = e.extra.pop("report_sha256", None)
        settled(lambda s: jobs.fail(s, job.id, job.fence, e, SIGNING, report_sha256=report_sha256), seconds=settings().lease)
    except Exception:
        log.exception("job %s will be tried again", job.id)
    return True


def _opened(job: Job, storage: Storage, identity: recipients.Identity | None) -> Storage:
    """The store as the result's files lie in it: under the customer's key, where the job came with one.

    Raises:
        CustomerKeyGone.
    """
    if job.customer_key is None:
        return storage
    if identity is None:
        raise CustomerKeyGone(recipients.GONE)
    return storage.under(customer_keys.CustomerKey.rooted(job.customer_key, identity.open(job)))


def _take(storage: Storage, job: Job, name: str, file: dict, advance: Callable[[int], None]) -> None:
    """Hash one file of the handoff, and make it a blob. One that an earlier attempt has promoted is a blob already.

    Raises:
        StorageDamaged: it is gone, or not what the worker handed over.
    """
    key = f"{job.handoff['prefix']}/{name}" if job.handoff.get("prefix") else ""
    pending = bool(key) and storage.exists(key)
    digest, size = Chunked(), 0
    try:
        for block in storage.stream(key if pending else file["sha256"]):
            digest.update(block)
            size += len(block)
            advance(len(block))
    except FileNotFoundError:
        raise StorageDamaged(f"{name} of the result is gone from storage") from None
    if (size, digest.hexdigest()) != (file["size"], file["sha256"]):
        found = f"{size} bytes with SHA-256 {digest.hexdigest()}"
        raise StorageDamaged(f"{name} of the result is {found}; handed over were {file['size']} with {file['sha256']}")
    settled(lambda s: hold(s, file["sha256"], size, digest.chunks()))
    if pending:
        storage.promote(key, file["sha256"])
    elif not storage.exists(file["sha256"]):
        raise StorageDamaged(f"{name} of the result was collected while it was signed")


def _put(storage: Storage, name: str, data: bytes) -> dict:
    """A small file as a blob."""
    return {"path": name, "size": len(data), "sha256": keep(storage, data)}


def _judged(storage: Storage, job: Job, advance: Callable[[int], None]) -> dict:
    """The report as a blob. The child has judged its gates; those of a cached result are this job's, and are judged here.

    Raises:
        GateFailed: with the report attached to the job.
    """
    report = job.handoff["report"]
    _take(storage, job, "report.json", report, advance)
    if not job.cached:
        return report
    if report["size"] > MAX_REPORT:
        raise StorageDamaged(f"the cached report has {report['size']} bytes, more than {MAX_REPORT}")
    document = parse_json(storage.read(report["sha256"]))
    judged = gates.judge(job.spec.get("gates") or {}, document["tensors"], document["totals"], document.get("quality"))
    if judged != document["gates"]:
        report = _put(storage, "report.json", canonical(document | {"gates": judged}))
    try:
        gates.enforce(judged)
    except GateFailed as e:
        e.extra["report_sha256"] = report["sha256"]
        raise
    return report


def _finish(storage: Storage, results: Storage, job: Job, key: PrivateKey, files: list[dict], report: dict, started: float) -> None:
    """Sign, and make the artifact visible. `started`: when the signing began, on the monotonic clock."""
    with reading() as s:
        source = s.get_one(Artifact, job.input_id)
        beside = dict(s.execute(select(Companion.role, Companion.digest).where(Companion.job_id == job.id)).all())
    digests = {f["path"]: f["sha256"] for f in files}
    made = provenance(
        digests,
        job_id=job.id,
        spec=job.spec,
        input_digest=source.digest,
        input_files={f.path: f.sha256 for f in source.files},
        beside=beside,
        environment=job.handoff["environment"],
        started=job.handoff["started"],
        finished=job.handoff["ended"],
        report=report["sha256"],
        cached=job.cached,
    )
    sidecars = [_put(storage, name, data) for name, data in sign_artifact(key, digests, job.handoff["name"], made).items()]
    ident = key_id(key.public_key())
    artifact = Artifact(
        id=new_id(),
        owner=job.owner,
        kind=source.kind,
        format=job.handoff["format"],
        name=job.handoff["name"],
        digest=artifact_digest(files),
        size=sum(f["size"] for f in files),
        expires_at=until(settings().result_ttl),
    )
    signatures = [
        Signature(file=f["path"], size=f["size"], sha256=f["sha256"], key_id=ident if f["path"] in SIGNATURES else None)
        for f in [*sidecars, report | {"path": "report.json"}]
    ]
    rows = [ArtifactFile(path=f["path"], size=f["size"], sha256=f["sha256"], customer_key=job.customer_key) for f in files]

    def end(s: Session) -> bool | None:
        for place, these in ((results, rows), (storage, signatures)):
            refer(s, place, {row.sha256: row.size for row in these})
            absolve(s, place, *{row.sha256 for row in these})  # each was hashed or written here
        if not jobs.finish(s, job, job.fence, artifact, rows, signatures, report["sha256"]):
            return None
        seconds = time.monotonic() - started
        of = {"stage": "sign", "method": meters.method(job.spec["recipe"]), "device": job.device or "cpu"}
        jobs.timed(s, job.id, {"sign": round(seconds, 3)})
        meters.add(s, "stage_seconds", total=seconds, **of)
        meters.add(s, "stage_bytes", count=artifact.size, **of)
        return True

    if not settled(end, lambda s: jobs.finished(s, job.id, artifact.id), settings().lease):
        raise LeaseLost


@contextmanager
def _lease(job: Job):
    """Renews the lease while the body works. Yields what the body calls with the bytes it has hashed: it raises LeaseLost once the lease is gone, and
    counts it as gone when the database has not answered for a whole one."""
    ended, lost = threading.Event(), threading.Event()
    total, done = sum(f["size"] for f in [*job.handoff["files"], job.handoff["report"]]), 0

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if lost.is_set():
            raise LeaseLost

    forecast = Forecast({"sign": (job.progress or {}).get("eta") or 0.0}, time.monotonic())
    before = (job.progress or {}).get("fraction") or 0.0

    def renew() -> None:
        answered = time.monotonic()
        while not ended.wait(settings().heartbeat) and not lost.is_set():
            fraction, eta = forecast.look("sign", min(1.0, done / max(total, 1)), time.monotonic())
            fraction = before + (1 - before) * fraction
            progress = {"stage": "sign", "fraction": round(fraction, 4), "eta": round(eta, 1), "bytes_done": done, "bytes_total": total}
            try:
                with session() as s, s.begin():
                    good = jobs.heartbeat(s, job.id, job.fence, SIGNING, progress)
                answered = time.monotonic()
            except Exception as e:  # whatever the database raises: what counts is for how long
                log.warning("job %s: no heartbeat: %s", job.id, e)
                good = time.monotonic() - answered < settings().lease
            if not good:
                lost.set()

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield advance
    finally:
        ended.set()
        thread.join()
