"""What one owner may have: bytes in storage, uploads and jobs under way, jobs that run at a time. None: no bound.

Bytes that several of an owner's artifacts share count once; under keys of its own nothing is shared. A result is never refused for its size: no job is taken any more once the room is used up.
"""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.config import settings
from app.db import now
from app.errors import StorageQuotaExceeded
from app.models import QUEUED, RUNNING, SIGNING, ApiKey, Artifact, ArtifactFile, Job, Upload

OPEN = (QUEUED, RUNNING, SIGNING)


def alone(s: Session, owner: str) -> None:
    """What is counted for this owner stays right until the transaction ends: others wait here. (On SQLite every writing transaction is alone.)"""
    s.execute(select(ApiKey.id).where(ApiKey.owner == owner).order_by(ApiKey.id).with_for_update())


def stored(s: Session, owner: str) -> int:
    """Bytes of all files of an owner's artifacts."""
    files = select(ArtifactFile.sha256, ArtifactFile.size, ArtifactFile.customer_key).join(Artifact, Artifact.id == ArtifactFile.artifact_id).where(Artifact.owner == owner).distinct().subquery()
    return int(s.scalar(select(func.coalesce(func.sum(files.c.size), 0))))


def _open_uploads(owner: str):
    return Upload.owner == owner, Upload.received < Upload.length, Upload.error.is_(None), Upload.expires_at > now()


def check_room(s: Session, owner: str, more: int = 0, beside_uploads: bool = True) -> None:
    """Args:
        more: bytes that are to come. beside_uploads: whether those that uploads under way have announced are spoken for.

    Raises:
        StorageQuotaExceeded.
    """
    if (most := settings().max_stored_bytes) is None:
        return
    there = stored(s, owner)
    announced = int(s.scalar(select(func.coalesce(func.sum(Upload.length), 0)).where(*_open_uploads(owner)))) if beside_uploads else 0
    if there + announced + more > most:
        said = f"{there} of {most} bytes are taken" + (f", {announced} more by uploads under way" if announced else "") + (f", and {more} are to come" if more else "")
        raise StorageQuotaExceeded(f"{said}; delete artifacts that you no longer need")


def usage(s: Session, owner: str) -> dict[str, int | None]:
    """What an owner has of what it may have."""
    jobs = dict(s.execute(select(Job.state, func.count()).where(Job.owner == owner, Job.state.in_(OPEN)).group_by(Job.state)).all())
    uploads = s.scalar(select(func.count()).where(*_open_uploads(owner)))
    there = {"stored_bytes": stored(s, owner), "open_uploads": uploads, "open_jobs": sum(jobs.values()), "running_jobs": jobs.get(RUNNING, 0)}
    return there | {f"max_{name}": getattr(settings(), f"max_{name}") for name in there}
