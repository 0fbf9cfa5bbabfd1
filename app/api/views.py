"""How artifacts and jobs look from outside."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from app.budget import bounds
from app.job_spec import COMPANIONS
from app.models import QUEUED, RUNNING, SIGNING, SUCCEEDED, TERMINAL, Artifact, Job, Upload
from app.times import rfc3339


class FileView(BaseModel):
    path: str
    size: int
    sha256: str


class ArtifactView(BaseModel):
    """`digest`: SHA-256 of the sorted lines `path size sha256`. Times are RFC 3339; `expires_at`: when it is deleted, None: never.
    `quarantined`: why no byte of it is handed out, None: all of it is. `customer_key`: whether it opens with a key of its uploader's own alone."""

    id: str
    digest: str
    size: int
    kind: str
    format: str
    name: str
    created_at: str
    expires_at: str | None
    signed: bool
    quarantined: str | None
    customer_key: bool
    files: list[FileView]


class Artifacts(BaseModel):
    items: list[ArtifactView]
    next: str | None


class UploadView(BaseModel):
    """`artifact` is its id once all `length` bytes are there, `error` the problem once it was refused. `expires_at`: RFC 3339, moved on by every byte."""

    id: str
    name: str
    kind: str
    length: int
    offset: int
    artifact: str | None
    error: dict[str, Any] | None
    expires_at: str


class Progress(BaseModel):
    """`fraction` (0 to 1, never going back within an attempt) and `eta` (seconds) are of the whole job, the bytes of the stage; None where it cannot be told."""

    stage: str
    fraction: float | None = None
    bytes_done: int | None = None
    bytes_total: int | None = None
    eta: float | None = None


class JobView(BaseModel):
    """`output` is the artifact's id once `state` is succeeded, `error` the problem once it is failed, `report` a link where there is one. `device_used`
    is what computed it last: cpu, or cuda and the GPU's name; `customer_key`: whether it came with one; `comparison` the id of that which it was made for."""

    id: str
    state: str
    input: str
    kind: str
    gradients: str | None
    calibration: str | None
    labels: str | None
    recipe: dict[str, Any]
    budget: dict[str, Any] | None
    output: str | None
    output_format: str
    gates: dict[str, Any]
    sanitize: str
    seed: int
    device: str
    device_used: str | None
    priority: str
    tags: dict[str, str]
    webhook: dict[str, str] | None
    comparison: str | None
    progress: Progress
    error: dict[str, Any] | None
    report: str | None
    attempts: int
    cached: bool
    customer_key: bool
    created_at: str
    started_at: str | None
    finished_at: str | None


class Jobs(BaseModel):
    items: list[JobView]
    next: str | None


def artifact_view(a: Artifact) -> ArtifactView:
    files = [FileView(path=f.path, size=f.size, sha256=f.sha256) for f in a.files]
    told = {name: getattr(a, name) for name in ("id", "digest", "size", "kind", "format", "name", "quarantined")}
    times = {name: rfc3339(getattr(a, name)) for name in ("created_at", "expires_at")}
    return ArtifactView(**told, **times, signed=bool(a.signatures), customer_key=any(f.customer_key for f in a.files), files=files)


def upload_view(u: Upload) -> UploadView:
    told = {name: getattr(u, name) for name in ("id", "name", "kind", "length", "error")}
    return UploadView(**told, offset=u.received, artifact=u.artifact_id, expires_at=rfc3339(u.expires_at))


def _progress(job: Job) -> Progress:
    told = job.progress or {}
    stage = told.get("stage") or {QUEUED: "queued", RUNNING: "start", SIGNING: "sign"}.get(job.state, job.state)
    if job.state in TERMINAL or job.state == SIGNING:
        stage = {SIGNING: "sign"}.get(job.state, job.state)
    fraction = 1.0 if job.state == SUCCEEDED else told.get("fraction")
    eta = told.get("eta") if job.state in (RUNNING, SIGNING) else None
    return Progress(stage=stage, fraction=fraction, bytes_done=told.get("bytes_done"), bytes_total=told.get("bytes_total"), eta=eta)


def job_view(job: Job) -> JobView:
    spec = job.spec
    return JobView(
        **{k: spec[k] for k in ("input", "recipe", "sanitize", "seed", "device", "tags")},
        **{role: spec.get(role) for role in COMPANIONS},
        budget=bounds(spec.get("budget")) or None,
        device_used=job.device,
        priority=spec.get("priority", "normal"),  # jobs of before know none
        id=job.id,
        kind=spec.get("kind", "model"),  # nor that there are others
        state=job.state,
        webhook=job.webhook,
        comparison=job.comparison_id,
        output=job.output_id,
        output_format=spec["output"]["format"],
        gates={k: v for k, v in spec["gates"].items() if v is not None},
        progress=_progress(job),
        error=job.error,
        report=f"/v1/jobs/{job.id}/report" if job.report_sha256 else None,
        attempts=job.attempt,
        cached=job.cached,
        customer_key=job.customer_key is not None,
        created_at=rfc3339(job.created_at),
        started_at=rfc3339(job.started_at),
        finished_at=rfc3339(job.finished_at),
    )
