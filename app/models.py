"""Tables, and the states of a job.

                                   cache hit
              ┌──────────────────────────────────────────┐
    queued ───┴──> running ──────> signing ──> succeeded │
      ^  │           │ │  │           │ └─────────────────┘
      │  │           │ │  └─> failed <┘
      └──┼───────────┘ │   (lease lost, attempt + 1)
         └─> cancelled <┘

A job that waits, queued or signing, with a customer's key that nobody can open any more fails, too. Terminal states never change. Every transition is one conditional update in `app.jobs`.
"""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import DDL, JSON, BigInteger, Boolean, Float, ForeignKey, Index, Integer, LargeBinary, String, Text, event
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.db import Base, now

QUEUED, RUNNING, SIGNING, SUCCEEDED, FAILED, CANCELLED = STATES = ("queued", "running", "signing", "succeeded", "failed", "cancelled")
TERMINAL = frozenset({SUCCEEDED, FAILED, CANCELLED})


def new_id() -> str:
    """122 random bits: ids cannot be guessed."""
    return str(uuid.uuid4())


class ApiKey(Base):
    __tablename__ = "api_keys"
    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    owner: Mapped[str] = mapped_column(String(64), index=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)  # SHA-256 of the key; the key itself is never stored
    name: Mapped[str] = mapped_column(String(200), default="")
    scope: Mapped[str] = mapped_column(String(16), default="write", server_default="write")  # app.scopes
    created_at: Mapped[float] = mapped_column(Float, default=now())
    expires_at: Mapped[float | None] = mapped_column(Float)
    last_used_at: Mapped[float | None] = mapped_column(Float)  # written once a minute (app.last_use)
    revoked_at: Mapped[float | None] = mapped_column(Float)
    __table_args__ = (Index("ix_api_keys_listing", "owner", "created_at", "id"),)


class Audit(Base):
    """A change: who made it, and by which key. Rows are only ever added; the database refuses anything else."""

    __tablename__ = "audit"
    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    owner: Mapped[str] = mapped_column(String(64))  # of what was changed
    actor: Mapped[str] = mapped_column(String(16))  # key | operator | service
    key_id: Mapped[str | None] = mapped_column(String(36))
    action: Mapped[str] = mapped_column(String(40))  # app.audit lists them
    subject: Mapped[str | None] = mapped_column(String(36))  # the id of what was changed
    details: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    request_id: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[float] = mapped_column(Float, default=now())
    __table_args__ = (Index("ix_audit_listing", "owner", "created_at", "id"), Index("ix_audit_created_at", "created_at"))


_REFUSE = "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
for _kind, _statement in (
    ("sqlite", f"CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit {_REFUSE}"),
    ("sqlite", f"CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit {_REFUSE}"),
    ("sqlite", f"CREATE TRIGGER audit_no_replace BEFORE INSERT ON audit WHEN EXISTS (SELECT 1 FROM audit WHERE id = NEW.id) {_REFUSE}"),
    ("postgresql", "CREATE OR REPLACE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$"),
    ("postgresql", "CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse()"),
):  # fmt: skip
    event.listen(Audit.__table__, "after_create", DDL(_statement).execute_if(dialect=_kind))  # the migration has the same


class Blob(Base):
    """Bytes in storage, named by their SHA-256 and shared by everything that has the same bytes."""

    __tablename__ = "blobs"
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    crc32: Mapped[int | None] = mapped_column(BigInteger)  # what a zip wants; known once the blob has been asked for in one
    created_at: Mapped[float] = mapped_column(Float, default=now())
    marked_at: Mapped[float | None] = mapped_column(Float)  # found unreferenced; deleted when still so after `orphan_age`
    chunks: Mapped[bytes | None] = mapped_column(LargeBinary, deferred=True)  # SHA-256 of each chunk, one after the other (app.chunks)
    checked_at: Mapped[float | None] = mapped_column(Float, index=True)  # when the scrubber last read it through
    damaged_at: Mapped[float | None] = mapped_column(Float)  # found to have other bytes than it was stored with


class DamagedCopy(Base):
    """Encrypted blobs lie apart for every owner: whose of a damaged blob is. A damaged one without such rows is everybody's."""

    __tablename__ = "damaged_copies"
    sha256: Mapped[str] = mapped_column(ForeignKey("blobs.sha256", ondelete="CASCADE"), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64), primary_key=True)


class CustomerKeyCheck(Base):
    """What tells an uploader's own key from a wrong one, of one upload or result (`app.storage.customer`). The key itself is never stored."""

    __tablename__ = "customer_key_checks"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    value: Mapped[str] = mapped_column(String(64))
    damaged_at: Mapped[float | None] = mapped_column(Float)  # some bytes under it were found to be others
    created_at: Mapped[float] = mapped_column(Float, default=now())


class Artifact(Base):
    __tablename__ = "artifacts"
    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    owner: Mapped[str] = mapped_column(String(64), index=True)
    kind: Mapped[str] = mapped_column(String(32))
    format: Mapped[str] = mapped_column(String(32))
    name: Mapped[str] = mapped_column(String(512))
    digest: Mapped[str] = mapped_column(String(64), index=True)  # SHA-256 of the sorted `path size sha256` lines
    size: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[float] = mapped_column(Float, default=now())
    expires_at: Mapped[float | None] = mapped_column(Float, index=True)  # then it is deleted, unless a job still works on it
    quarantined: Mapped[str | None] = mapped_column(String(500))  # why no byte of it is handed out (app.quarantine)
    files: Mapped[list[ArtifactFile]] = relationship(order_by="ArtifactFile.path", cascade="all, delete-orphan", lazy="selectin")
    signatures: Mapped[list[Signature]] = relationship(order_by="Signature.file", cascade="all, delete-orphan", lazy="selectin")
    __table_args__ = (Index("ix_artifacts_listing", "owner", "created_at", "id"),)


class ArtifactFile(Base):
    __tablename__ = "artifact_files"
    artifact_id: Mapped[str] = mapped_column(ForeignKey("artifacts.id", ondelete="CASCADE"), primary_key=True)
    path: Mapped[str] = mapped_column(String(1024), primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(ForeignKey("blobs.sha256"), index=True)
    customer_key: Mapped[str | None] = mapped_column(String(32), index=True)  # under which the file is stored


class Signature(Base):
    """What stands beside a result's files and outside its digest: `report.json`, `provenance.json` (DSSE), `model.sig` (Sigstore bundle),
    `SHA256SUMS`, `SHA256SUMS.sig`. Each is a blob; `key_id` names the key where the file is a signature."""

    __tablename__ = "signatures"
    artifact_id: Mapped[str] = mapped_column(ForeignKey("artifacts.id", ondelete="CASCADE"), primary_key=True)
    file: Mapped[str] = mapped_column(String(64), primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(ForeignKey("blobs.sha256"), index=True)
    key_id: Mapped[str | None] = mapped_column(String(64))


class Job(Base):
    __tablename__ = "jobs"
    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    owner: Mapped[str] = mapped_column(String(64), index=True)
    input_id: Mapped[str | None] = mapped_column(ForeignKey("artifacts.id", ondelete="SET NULL"), index=True)  # gone when deleted after the job's end
    spec: Mapped[dict[str, Any]] = mapped_column(JSON)  # the resolved job spec (app.job_spec.JobSpec)
    queue: Mapped[str] = mapped_column(String(32), default="compress.cpu")
    priority: Mapped[int] = mapped_column(Integer, default=0)  # among its owner's jobs, as a nice value: the lowest goes first
    memory: Mapped[int] = mapped_column(BigInteger, default=0)  # estimated peak of the child, bytes
    input_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    state: Mapped[str] = mapped_column(String(16), default=QUEUED)
    attempt: Mapped[int] = mapped_column(Integer, default=0)  # of the compression; counted before the work starts
    sign_attempt: Mapped[int] = mapped_column(Integer, default=0)
    fence: Mapped[int] = mapped_column(Integer, default=0)  # every claim gets a new one; a write with an old one changes nothing
    lease_until: Mapped[float | None] = mapped_column(Float)  # of the worker while running, of the sign process while signing
    woken_at: Mapped[float | None] = mapped_column(Float)
    progress: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)  # {stage, fraction, bytes_done, bytes_total}
    last_event: Mapped[int] = mapped_column(Integer, default=0)  # `seq` of its newest JobEvent
    handoff: Mapped[dict[str, Any] | None] = mapped_column(JSON)  # what the worker hands to sign: {prefix, files, report, environment}
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON)  # problem document
    report_sha256: Mapped[str | None] = mapped_column(ForeignKey("blobs.sha256"))  # kept for failed jobs too (a failed gate shows its figures)
    output_id: Mapped[str | None] = mapped_column(ForeignKey("artifacts.id", ondelete="SET NULL"))
    cache_key: Mapped[str | None] = mapped_column(String(64), index=True)
    cached: Mapped[bool] = mapped_column(Boolean, default=False)
    worker: Mapped[str | None] = mapped_column(String(100))  # the id of whoever claimed it last
    device: Mapped[str | None] = mapped_column(String(100))  # what computed it: cpu, or cuda and the GPU's name
    timings: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)  # stage -> seconds
    request_id: Mapped[str | None] = mapped_column(String(64))  # of the request that made it; stands in the logs
    webhook: Mapped[dict[str, Any] | None] = mapped_column(JSON)  # {url}: who is to be told of its end
    comparison_id: Mapped[str | None] = mapped_column(String(36), index=True)  # that it was made for
    figures: Mapped[dict[str, Any] | None] = mapped_column(JSON)  # what a comparison tells of its result (app.figures)
    created_at: Mapped[float] = mapped_column(Float, default=now())
    started_at: Mapped[float | None] = mapped_column(Float)
    finished_at: Mapped[float | None] = mapped_column(Float)
    expires_at: Mapped[float | None] = mapped_column(Float, index=True)
    customer_key: Mapped[str | None] = mapped_column(String(32), index=True)  # under which its result is stored
    sealed_key: Mapped[str | None] = mapped_column(Text)  # the key for whoever works on it next (app.recipients); gone at the end
    __table_args__ = (
        Index("ix_jobs_claim", "queue", "state", "owner", "priority", "created_at", "id"),
        Index("ix_jobs_running", "state", "owner"),
        Index("ix_jobs_served", "owner", "started_at"),
        Index("ix_jobs_ended", "owner", "finished_at"),
        Index("ix_jobs_listing", "owner", "created_at", "id"),
        Index("ix_jobs_listing_by_state", "owner", "state", "created_at", "id"),
    )


class Companion(Base):
    """What a job brings beside its input: gradients, calibration, labels."""

    __tablename__ = "companions"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    role: Mapped[str] = mapped_column(String(16), primary_key=True)
    artifact_id: Mapped[str | None] = mapped_column(ForeignKey("artifacts.id", ondelete="SET NULL"), index=True)  # gone when deleted after the job's end
    digest: Mapped[str] = mapped_column(String(64))  # of the artifact, for the provenance


class JobRecipient(Base):
    """Which running process can open a job's `sealed_key`."""

    __tablename__ = "job_recipients"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    recipient: Mapped[str] = mapped_column(String(100), primary_key=True)


class Recipient(Base):
    """A running process that customers' keys can be sealed to: its age recipient, whose other half is in its memory alone."""

    __tablename__ = "recipients"
    id: Mapped[str] = mapped_column(String(100), primary_key=True)
    queues: Mapped[list[str]] = mapped_column(JSON)
    age: Mapped[str] = mapped_column(String(100))
    seen_at: Mapped[float] = mapped_column(Float, default=now(), index=True)


class Statistic(Base):
    """What calibration has found of a model on some data, kept for the next job that asks the same (`key` says what it depends on)."""

    __tablename__ = "statistics"
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64), index=True)
    sha256: Mapped[str] = mapped_column(ForeignKey("blobs.sha256"), index=True)
    size: Mapped[int] = mapped_column(BigInteger)
    used_at: Mapped[float] = mapped_column(Float, default=now(), index=True)


class Comparison(Base):
    """Several jobs on one input, told together."""

    __tablename__ = "comparisons"
    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    owner: Mapped[str] = mapped_column(String(64), index=True)
    spec: Mapped[dict[str, Any]] = mapped_column(JSON)  # {input, calibration, ..., recipes: [{name, recipe, output_format}]}
    jobs: Mapped[list[str]] = mapped_column(JSON)  # ids, in the order of the recipes
    created_at: Mapped[float] = mapped_column(Float, default=now())
    __table_args__ = (Index("ix_comparisons_listing", "owner", "created_at", "id"),)


class Outbox(Base):
    """Wake-ups that must reach the broker. Written with the job in one transaction, deleted once sent."""

    __tablename__ = "outbox"
    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    topic: Mapped[str] = mapped_column(String(64))  # the queue to wake
    payload: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    created_at: Mapped[float] = mapped_column(Float, default=now())


class JobEvent(Base):
    """What happened to a job, in order, for whoever watches it: `id` of a server-sent event is `seq`."""

    __tablename__ = "job_events"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(Integer, primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))  # state | progress | log
    data: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    created_at: Mapped[float] = mapped_column(Float, default=now())
    __table_args__ = (Index("ix_job_events_old", "kind", "created_at"),)


class Upload(Base):
    """An upload that can be resumed (tus). `received` is committed only after the bytes are on disk."""

    __tablename__ = "uploads"
    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    owner: Mapped[str] = mapped_column(String(64), index=True)
    name: Mapped[str] = mapped_column(String(512))
    kind: Mapped[str] = mapped_column(String(32))
    length: Mapped[int] = mapped_column(BigInteger)
    received: Mapped[int] = mapped_column(BigInteger, default=0)  # the length only once the artifact is there
    format: Mapped[str | None] = mapped_column(String(32))  # once the head has been judged
    sha256: Mapped[str | None] = mapped_column(String(64))  # as announced
    details: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)  # Upload-Metadata as it was sent; parts of a multipart upload
    fence: Mapped[int] = mapped_column(Integer, default=0)  # every writer gets a new one; a write with an old one changes nothing
    lease_until: Mapped[float | None] = mapped_column(Float)
    artifact_id: Mapped[str | None] = mapped_column(ForeignKey("artifacts.id", ondelete="SET NULL"))  # once it is complete
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON)  # why it was refused once it was complete
    customer_key: Mapped[str | None] = mapped_column(String(32), index=True)  # under which its bytes are stored
    created_at: Mapped[float] = mapped_column(Float, default=now())
    expires_at: Mapped[float] = mapped_column(Float, index=True)


class IdempotencyKey(Base):
    """A request that was answered: the same key with the same body gets the same job again, with another body it is refused."""

    __tablename__ = "idempotency_keys"
    owner: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64))  # SHA-256 of the request
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[float] = mapped_column(Float, default=now(), index=True)


class Delivery(Base):
    """A webhook on its way: written with the job's end in one transaction, tried again until it is taken or given up."""

    __tablename__ = "deliveries"
    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)  # `webhook-id`
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    owner: Mapped[str] = mapped_column(String(64))
    url: Mapped[str] = mapped_column(String(2048))
    host: Mapped[str] = mapped_column(String(255))  # of the URL; a slow one takes its share of what is sent at a time, and no more
    body: Mapped[dict[str, Any]] = mapped_column(JSON)
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    due_at: Mapped[float | None] = mapped_column(Float, default=now())  # of the next attempt; None once it is over
    lease_until: Mapped[float | None] = mapped_column(Float)  # of whoever is sending it
    woken_at: Mapped[float | None] = mapped_column(Float)
    delivered_at: Mapped[float | None] = mapped_column(Float)
    error: Mapped[str | None] = mapped_column(String(500))  # of the last attempt
    created_at: Mapped[float] = mapped_column(Float, default=now())
    __table_args__ = (Index("ix_deliveries_due", "due_at", "created_at"), Index("ix_deliveries_listing", "owner", "created_at", "id"))


class WebhookSecret(Base):
    """With what an owner's webhooks are signed (HMAC, so it has to be kept as it is)."""

    __tablename__ = "webhook_secrets"
    owner: Mapped[str] = mapped_column(String(64), primary_key=True)
    secret: Mapped[str] = mapped_column(String(100))
    previous: Mapped[str | None] = mapped_column(String(100))  # signs along until `previous_until`
    previous_until: Mapped[float | None] = mapped_column(Float)
    created_at: Mapped[float] = mapped_column(Float, default=now())


class Secret(Base):
    """What all API processes have to know and nobody else, by its purpose (`links`)."""

    __tablename__ = "secrets"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[str] = mapped_column(String(100))
    created_at: Mapped[float] = mapped_column(Float, default=now())


class PublicKey(Base):
    """A public key of the sign process, for API processes that do not share its disk."""

    __tablename__ = "public_keys"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    pem: Mapped[str] = mapped_column(String(1000))
    created_at: Mapped[float] = mapped_column(Float, default=now())
    signs_from: Mapped[float | None] = mapped_column(Float)
    signs_until: Mapped[float | None] = mapped_column(Float)  # another one has taken over; what it signed before holds
    revoked_at: Mapped[float | None] = mapped_column(Float)  # nothing that it signed holds any more
    revoked_because: Mapped[str | None] = mapped_column(String(500))
    held_at: Mapped[float | None] = mapped_column(Float)  # when a sign process last signed a probe with it


class Worker(Base):
    """A worker process that has been seen: what it takes, what it has, whether its jail holds."""

    __tablename__ = "workers"
    id: Mapped[str] = mapped_column(String(100), primary_key=True)  # host, process id and a random part
    queues: Mapped[list[str]] = mapped_column(JSON)
    device: Mapped[str] = mapped_column(String(100))  # cpu, or cuda and the GPU's name
    memory: Mapped[int] = mapped_column(BigInteger)  # bytes that a child may take
    threads: Mapped[int] = mapped_column(Integer)
    jail: Mapped[dict[str, Any]] = mapped_column(JSON)
    version: Mapped[str] = mapped_column(String(32))
    started_at: Mapped[float] = mapped_column(Float, default=now())
    seen_at: Mapped[float] = mapped_column(Float, default=now(), index=True)


class Meter(Base):
    """Sums over all jobs so far, by name and labels: counts, bytes and seconds of stages, failures by type, leases that ran out."""

    __tablename__ = "meters"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    labels: Mapped[str] = mapped_column(String(255), primary_key=True)  # `method=quantize,device=cpu`
    count: Mapped[int] = mapped_column(BigInteger, default=0)
    total: Mapped[float] = mapped_column(Float, default=0.0)
