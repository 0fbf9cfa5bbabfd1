"""Every transition of a job, each one conditional update on the database's clock.

A claim gives the job a new fence and a lease. Whoever works on it writes `WHERE fence = :f`; when that matches no row, somebody else has the job (or
it was cancelled), and the worker stops and writes nothing. Functions take a session inside a transaction; the caller commits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from sqlalchemy import Select, Update, exists, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from app import audit, events, meters, recipients
from app.claiming import take
from app.config import settings
from app.db import now
from app.errors import AlreadyFinished, Conflict, ModelpressError, TooManyJobs, WorkerCrashed
from app.followers import moved
from app.logs import request_id
from app.models import CANCELLED, FAILED, QUEUED, RUNNING, SIGNING, SUCCEEDED, TERMINAL, Artifact, ArtifactFile, Companion, Job, Outbox, Recipient, Signature, new_id
from app.queues import GPU
from app.retention import until
from app.turns import signing_turns, turns

SIGN_QUEUE = "sign"
PRIORITIES = {"high": -1, "normal": 0, "low": 1}
_Sibling = aliased(Job)
_SIBLING_RUNS = exists().where(_Sibling.comparison_id == Job.comparison_id, _Sibling.state == RUNNING)


class Claimant(Protocol):
    """Whoever claims: a worker process by its id, and what computes there (cpu, or cuda and the GPU's name)."""

    id: str
    device: str


def submit(
    s: Session, *, owner: str, input_id: str, spec: dict, queue: str, cache_key: str | None, handoff: dict | None = None, webhook: dict | None = None,
    memory: int = 0, input_bytes: int = 0, ident: str | None = None, companions: Iterable[Companion] = (), comparison_id: str | None = None,
) -> Job:  # fmt: skip
    """Insert a job and the wake-up of its queue. With `handoff` (a cache hit) it goes straight to be signed.

    Args:
        memory: its child's peak, bytes. ident: its id, for whoever must find it again. companions: what it brings beside the input. comparison_id: see
            `claim`.

    Raises:
        TooManyJobs: of this owner have not ended yet.
    """
    most = settings().max_open_jobs
    if s.get_bind().dialect.name == "postgresql":  # where transactions do not see each other: an owner's jobs are counted one at a time
        s.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"jobs of {owner}", 0))))
    if s.scalar(select(func.count()).where(Job.owner == owner, Job.state.in_([QUEUED, RUNNING, SIGNING]))) >= most:
        raise TooManyJobs(f"{most} jobs of yours have not ended yet, and no more may be; wait for one, or cancel one")
    state = SIGNING if handoff else QUEUED
    job = Job(id=ident or new_id(), owner=owner, input_id=input_id, spec=spec, queue=queue, state=state)
    job.cache_key, job.handoff, job.cached = cache_key, handoff, handoff is not None
    job.comparison_id, job.figures = comparison_id, (handoff or {}).get("figures")
    job.request_id = request_id.get()
    job.webhook, job.memory, job.input_bytes = webhook, memory, input_bytes
    job.priority = PRIORITIES[spec.get("priority", "normal")]
    s.add_all([job, Outbox(topic=SIGN_QUEUE if handoff else queue)])
    s.flush()
    audit.record(s, "job.submit", owner, job.id, comparison=comparison_id)
    s.add_all(Companion(job_id=job.id, role=c.role, artifact_id=c.artifact_id, digest=c.digest) for c in companions)
    s.flush()
    moved(s, job.id, state)
    return job


def _claim(s: Session, eligible: Select, **values) -> Job | None:
    """Take the first eligible job (see `take`), under a new fence and a lease."""
    return take(s, Job, eligible, fence=Job.fence + 1, lease_until=now() + settings().lease, **values)


def claim(s: Session, *queues: str, worker: Claimant | None = None) -> Job | None:
    """The queued job whose turn it is (`app.turns`), now running: of an owner's jobs in a queue the one of the highest priority, then the oldest. The
    attempt is counted before any work starts. The jobs of a comparison run one after another: what the first has found in the data serves the others,
    and none of them slows down what is compared.

    Args:
        queues: the most specialised first.

    Returns:
        None when there is none that others do not hold just now.
    """
    for owner, queue in turns(s, queues):
        if not _may_run(s, owner):
            continue
        eligible = select(Job.id).where(Job.queue == queue, Job.state == QUEUED, Job.owner == owner)
        eligible = eligible.where(~_SIBLING_RUNS, recipients.can_open(worker and worker.id)).order_by(Job.priority, Job.created_at, Job.id)
        while True:
            with s.begin_nested() as point:
                job = _claim(s, eligible, state=RUNNING, attempt=Job.attempt + 1, started_at=now(), **_by(worker, queue))
                if job is not None and not _alone(s, job):
                    point.rollback()
                    continue
            break
        if job is not None:
            moved(s, job.id, RUNNING)
            return job
    return None


def _may_run(s: Session, owner: str) -> bool:
    """Whether one more job of the owner may run. On PostgreSQL claims do not see each other, so that one at a time counts for an owner; who comes meanwhile
    passes the owner over, and nobody waits."""
    if (most := settings().max_running_jobs) is None:
        return True
    if s.get_bind().dialect.name == "postgresql" and not s.scalar(select(func.pg_try_advisory_xact_lock(func.hashtextextended(f"owner {owner}", 0)))):
        return False
    return s.scalar(select(func.count()).where(Job.owner == owner, Job.state == RUNNING)) < most


def _alone(s: Session, job: Job) -> bool:
    """Whether no other job of its comparison runs, once whoever claims one at the same time has committed: on PostgreSQL two claims do not see each other."""
    if job.comparison_id is None or s.get_bind().dialect.name != "postgresql":
        return True
    s.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(job.comparison_id, 0))))
    return s.scalar(select(Job.id).where(Job.comparison_id == job.comparison_id, Job.state == RUNNING, Job.id != job.id).limit(1)) is None


def claimed(s: Session, worker: str) -> Job | None:
    """The job that a worker has, for one that has not heard whether its claim took effect: it has one at a time."""
    return s.scalars(select(Job).where(Job.worker == worker, Job.state == RUNNING).order_by(Job.started_at.desc()).limit(1)).first()


def _by(worker: Claimant | None, queue: str) -> dict:
    return {"worker": worker.id, "device": worker.device if queue in GPU else "cpu"} if worker else {}


def claim_signing(s: Session, recipient: str | None = None) -> Job | None:
    """The oldest job that nobody is signing of the owner whose turn it is (`app.turns`). `recipient`: as whom keys can be opened (`app.recipients`)."""
    free = or_(Job.lease_until.is_(None), Job.lease_until < now())
    eligible = select(Job.id).where(Job.state == SIGNING, free, Job.sign_attempt < settings().max_attempts, recipients.can_open(recipient))
    eligible = eligible.order_by(Job.created_at, Job.id)
    owners = signing_turns(s)
    job = next((job for owner in owners if (job := _claim(s, eligible.where(Job.owner == owner), sign_attempt=Job.sign_attempt + 1))), None)
    if job is not None and job.sign_attempt > 1:
        meters.add(s, "leases_expired", queue=SIGN_QUEUE)
    return job


def unclaim_signing(s: Session, job_id: str, fence: int) -> bool:
    """Give a job to be signed back; that costs no attempt."""
    return _done(s, _held(job_id, fence, SIGNING).where(Job.lease_until.is_not(None)).values(lease_until=None, sign_attempt=Job.sign_attempt - 1))


def _done(s: Session, statement: Update) -> bool:
    return s.execute(statement, execution_options={"synchronize_session": False}).rowcount == 1


def _move(s: Session, statement: Update, job_id: str, state: str, **values) -> bool:
    """Change the state of the one job that `statement` still finds, and tell the followers. False: it finds none."""
    if state in TERMINAL:
        values |= {"expires_at": until(settings().job_ttl), "sealed_key": None}
    done = _done(s, statement.values(state=state, **values))
    if done:
        moved(s, job_id, state)
        if state != SUCCEEDED:  # its worker was free when it went to be signed
            waiting = select(_Sibling.queue).join(Job, Job.comparison_id == _Sibling.comparison_id).where(Job.id == job_id, _Sibling.state == QUEUED)
            s.add_all(Outbox(topic=queue) for queue in s.scalars(waiting.distinct()))
    return done


def _held(job_id: str, fence: int, state: str) -> Update:
    return update(Job).where(Job.id == job_id, Job.fence == fence, Job.state == state)


def heartbeat(s: Session, job_id: str, fence: int, state: str = RUNNING, progress: dict | None = None) -> bool:
    """Extend the lease and tell the progress. False: stop at once, and write nothing."""
    values: dict[str, Any] = {"lease_until": now() + settings().lease} | ({"progress": progress} if progress is not None else {})
    done = _done(s, _held(job_id, fence, state).values(**values))
    if done and progress:
        events.progress(s, job_id, progress)
    return done


def held(s: Session, job_id: str, fence: int, state: str = RUNNING) -> bool:
    """Whether the claim still holds; a read, so that it can be asked often."""
    return s.scalar(select(Job.id).where(Job.id == job_id, Job.fence == fence, Job.state == state)) is not None


def timed(s: Session, job_id: str, timings: dict[str, float]) -> None:
    """Seconds by stage, beside what earlier stages took. Within the transaction of a transition, which holds the job."""
    job = s.get_one(Job, job_id, populate_existing=True)
    job.timings = (job.timings or {}) | timings


def handed_over(s: Session, job_id: str, prefix: str) -> bool | None:
    """True: the files under `prefix` are what the job was handed over with, whatever has become of it since."""
    job = s.get(Job, job_id)
    return True if job and (job.handoff or {}).get("prefix") == prefix else None


def handoff(s: Session, job_id: str, fence: int, document: dict, sealed_key: str | None = None, to: list[Recipient] | None = None) -> bool:
    """running -> signing. `sealed_key`: what the result is stored under, for these sign processes."""
    values = {"handoff": document, "figures": document.get("figures"), "lease_until": None, "sign_attempt": 0, "sealed_key": sealed_key}
    done = _move(s, _held(job_id, fence, RUNNING), job_id, SIGNING, **values)
    if done:
        recipients.address(s, job_id, to or [])
        s.add(Outbox(topic=SIGN_QUEUE))
    return done


def fail(
    s: Session, job_id: str, fence: int, error: ModelpressError | dict, state: str = RUNNING, report_sha256: str | None = None, figures: dict | None = None
) -> bool:
    """running or signing -> failed, with the problem. `figures`: as far as the work came."""
    problem = error if isinstance(error, dict) else error.problem()
    values = {"error": problem, "report_sha256": report_sha256, "lease_until": None, "finished_at": now()} | ({"figures": figures} if figures else {})
    return _move(s, _held(job_id, fence, state), job_id, FAILED, **values)


def requeue(s: Session, job_id: str, fence: int, *, why: str, costs_attempt: bool = True, spared: str = "drain") -> bool:
    """running -> queued, or failed `worker-crashed` once the attempts are used up. A graceful drain, or a store that is away, costs none.

    Args:
        spared: what the meter `requeues` says of one that costs no attempt.
    """
    job = s.get(Job, job_id, populate_existing=True)
    if job is None or job.fence != fence or job.state != RUNNING:
        return False
    if costs_attempt and job.attempt >= settings().max_attempts:
        detail = f"the work was started {job.attempt} times and ended each time without a result; the last time {why}"
        return fail(s, job_id, fence, WorkerCrashed(detail))
    attempt = job.attempt - (not costs_attempt)
    done = _move(s, _held(job_id, fence, RUNNING), job_id, QUEUED, attempt=attempt, lease_until=None, progress={}, woken_at=None)
    if done:
        events.log(s, job_id, f"attempt {job.attempt} ended without a result: {why}")
        s.add(Outbox(topic=job.queue))
        meters.add(s, "requeues", why="crash" if costs_attempt else spared)
    return done


def cancel(s: Session, job_id: str) -> None:
    """queued or running -> cancelled. The fence moves on, so a running worker finds its claim void and stops.

    Raises:
        AlreadyFinished, Conflict (while signing).
    """
    under_way = update(Job).where(Job.id == job_id, Job.state.in_([QUEUED, RUNNING]))
    if _move(s, under_way, job_id, CANCELLED, fence=Job.fence + 1, lease_until=None, finished_at=now()):
        return
    state = s.scalar(select(Job.state).where(Job.id == job_id))
    if state in TERMINAL - {CANCELLED}:
        raise AlreadyFinished(f"the job has already {state}")
    if state == SIGNING:
        raise Conflict("the job is being signed; it can no longer be cancelled")


def finished(s: Session, job_id: str, artifact_id: str) -> bool | None:
    """True: this artifact is what the job has ended with."""
    job = s.get(Job, job_id)
    return True if job and job.output_id == artifact_id else None


def finish(s: Session, job: Job, fence: int, artifact: Artifact, files: list[ArtifactFile], signatures: list[Signature], report_sha256: str) -> bool:
    """signing -> succeeded: the artifact, its files, its signatures and the job's end, in one transaction. The caller holds the blobs."""
    artifact.files, artifact.signatures = files, signatures
    s.add(artifact)
    s.flush()
    values = {"output_id": artifact.id, "report_sha256": report_sha256, "lease_until": None, "finished_at": now(), "error": None}
    if not _move(s, _held(job.id, fence, SIGNING), job.id, SUCCEEDED, **values):
        s.rollback()
        return False
    audit.record(s, "artifact.create", artifact.owner, artifact.id, size=artifact.size, digest=artifact.digest, job=job.id)
    return True
