"""Bytes that are no longer what they were: every artifact that has them is put under quarantine, and answers 410 from then on.

It ends when the right bytes are there again: they were uploaded or made once more, or an operator has put them back and the scrubber (`app.scrub`) has
read them through. What is stored is never changed here.
"""

from __future__ import annotations

import logging

from sqlalchemy import exists, or_, select, update
from sqlalchemy.orm import Session

from app import meters
from app.db import now
from app.errors import Quarantined
from app.models import Artifact, ArtifactFile, Blob, Signature
from app.settled import settled

log = logging.getLogger(__name__)
_AT_ONCE = 500  # digests in a statement
_APART = {"synchronize_session": False}


def _having(*conditions):
    """Artifacts with a blob, among their files or beside them, that meets the conditions."""
    return or_(*(exists().where(t.artifact_id == Artifact.id, t.sha256 == Blob.sha256, *conditions) for t in (ArtifactFile, Signature)))


def condemn(sha256: str, why: str) -> None:
    """Put what has this blob under quarantine, and say so in the log and the meters. `why`: what was found, without a stranger's words."""
    log.error("blob %s is damaged: %s", sha256, why)
    said = f"stored bytes with SHA-256 {sha256} are no longer what they were: {why}"[:500]

    def mark(s: Session) -> None:
        if s.execute(update(Blob).where(Blob.sha256 == sha256, Blob.damaged_at.is_(None)).values(damaged_at=now()), execution_options=_APART).rowcount:
            meters.add(s, "damage", found="bytes")
        s.execute(update(Artifact).where(Artifact.quarantined.is_(None), _having(Blob.sha256 == sha256)).values(quarantined=said), execution_options=_APART)

    settled(mark)


def absolve(s: Session, *digests: str) -> None:
    """These blobs were found right, or were written anew; in the caller's transaction."""
    healed = []
    for some in (digests[i : i + _AT_ONCE] for i in range(0, len(digests), _AT_ONCE)):
        damaged = (Blob.sha256.in_(some), Blob.damaged_at.is_not(None))
        healed += s.scalars(update(Blob).where(*damaged).values(damaged_at=None).returning(Blob.sha256), execution_options=_APART)
    if healed:
        log.warning("blobs that were damaged are right again: %s", ", ".join(healed))
        free = (Artifact.quarantined.is_not(None), ~_having(Blob.damaged_at.is_not(None)))
        s.execute(update(Artifact).where(*free).values(quarantined=None), execution_options=_APART)


def check(artifact: Artifact) -> None:
    """Raises:
    Quarantined: some of its bytes are damaged.
    """
    if artifact.quarantined:
        raise Quarantined(f"{artifact.quarantined}. Upload the file once more, or run the job again: the same bytes take their place")


def damaged(s: Session, digests: list[str]) -> bool:
    """Whether any of these blobs is known to be damaged."""
    return s.scalar(select(Blob.sha256).where(Blob.sha256.in_(digests), Blob.damaged_at.is_not(None)).limit(1)) is not None
