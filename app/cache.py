"""Results that are there already: a job that asks an owner's equal input for the same thing takes the earlier job's bytes and is only signed anew."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.blobs import hold
from app.budget import bounds
from app.libraries import versions
from app.models import SUCCEEDED, Artifact, Job

_DECIDES = ("recipe", "output", "sanitize", "seed")  # of a job spec; gates are judged anew, tags and the device's name change no byte


def cache_key(owner: str, input_digest: str, spec: dict, backend: str, companions: Mapping[str, str] = MappingProxyType({})) -> str:
    """What a result depends on, as one digest.

    Args:
        backend: the class of device that computes it.
        companions: role -> digest of what the job brings beside its input.
    """
    parts = {k: spec[k] for k in _DECIDES} | {"owner": owner, "input": input_digest, "versions": versions(spec.get("kind", "model")), "backend": backend}
    parts |= {} if spec.get("kind", "model") == "model" else {"kind": spec["kind"]}
    parts |= {"with": dict(companions)} | ({"budget": bounds(spec["budget"])} if spec.get("budget") else {})
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def found(s: Session, owner: str, key: str) -> Job | None:
    """The latest job whose result is there."""
    jobs = select(Job).join(Artifact, Job.output_id == Artifact.id).where(Job.owner == owner, Job.cache_key == key, Job.state == SUCCEEDED, Artifact.quarantined.is_(None))
    return s.scalars(jobs.order_by(Job.finished_at.desc()).limit(1)).first()


def earlier(s: Session, owner: str, key: str) -> dict | None:
    """The handoff to sign for a result that is there, its blobs held; None when it has to be computed."""
    job = found(s, owner, key)
    if job is None or not job.handoff:
        return None
    for file in [*job.handoff["files"], job.handoff["report"]]:
        hold(s, file["sha256"], file["size"])
    return job.handoff | {"prefix": None}
