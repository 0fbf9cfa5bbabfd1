"""Bytes that are no longer what they were: every artifact that has them is put under quarantine, and answers 410 from then on.

It ends when the right bytes are there again: they were uploaded or made once more, or an operator has put them back and the scrubber (`app.scrub`) has
read them through. What is stored is never changed here.
"""

from __future__ import annotations

import logging

from sqlalchemy import delete, exists, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app import meters
from app.db import now
from app.errors import Quarantined
from app.models import Artifact, ArtifactFile, Blob, CustomerKeyCheck, DamagedCopy, Signature
from app.settled import settled
from app.storage import Storage

log = logging.getLogger(__name__)
_AT_ONCE = 500  # digests in a statement
_APART = {"synchronize_session": False}


_HURT = Blob.damaged_at.is_not(None) & or_(
    ~exists().where(DamagedCopy.sha256 == Blob.sha256),
    exists().where(DamagedCopy.sha256 == Blob.sha256, DamagedCopy.owner == Artifact.owner),
)
"""Whether a blob is damaged as an artifact's owner has it."""


def _having(*conditions):
    """Artifacts with a blob, among their files or beside them, that meets the conditions; files under customers' keys lie elsewhere."""
    here = {ArtifactFile: [ArtifactFile.customer_key.is_(None)], Signature: []}
    return or_(*(exists().where(t.artifact_id == Artifact.id, t.sha256 == Blob.sha256, *c, *conditions).correlate(Artifact) for t, c in here.items()))


_KEYED_HURT = exists().where(ArtifactFile.artifact_id == Artifact.id, CustomerKeyCheck.id == ArtifactFile.customer_key, CustomerKeyCheck.damaged_at.is_not(None)).correlate(Artifact)
"""Whether some of an artifact's files lie under a customer's key, damaged. Nobody but its uploader can bring those bytes again, and then as another artifact."""


def condemn(storage: Storage, sha256: str, why: str) -> None:
    """Put what has this blob under quarantine, and say so in the log and the meters. Of an encrypted store: what its owner has; another's copy lies elsewhere.
    `why`: what was found, without a stranger's words."""
    if key := storage.customer_key(sha256):
        return _condemn_keyed(key.ident, sha256, why)
    owner = storage.owner if storage.vault else None
    log.error("blob %s%s is damaged: %s", sha256, "" if owner is None else f" of {owner!r}", why)
    said = f"stored bytes with SHA-256 {sha256} are no longer what they were: {why}"[:500]

    def mark(s: Session) -> None:
        fresh = s.execute(update(Blob).where(Blob.sha256 == sha256, Blob.damaged_at.is_(None)).values(damaged_at=now()), execution_options=_APART).rowcount
        theirs = [Artifact.owner == owner] if owner is not None else []
        if owner is not None and s.scalar(select(Blob.sha256).where(Blob.sha256 == sha256)):
            insert = (sqlite if s.get_bind().dialect.name == "sqlite" else postgresql).insert(DamagedCopy)
            fresh += s.execute(insert.values(sha256=sha256, owner=owner).on_conflict_do_nothing()).rowcount
        if fresh > 0:
            meters.add(s, "damage", found="bytes")
        having = _having(Blob.sha256 == sha256)
        s.execute(update(Artifact).where(Artifact.quarantined.is_(None), *theirs, having).values(quarantined=said), execution_options=_APART)

    settled(mark)


def _condemn_keyed(ident: str, sha256: str, why: str) -> None:
    """The same of what lies under a customer's key: of one upload or result."""
    log.error("blob %s under the customer's key %s is damaged: %s", sha256, ident, why)

    def mark(s: Session) -> None:
        hurt = update(CustomerKeyCheck).where(CustomerKeyCheck.id == ident, CustomerKeyCheck.damaged_at.is_(None))
        if s.execute(hurt.values(damaged_at=now()), execution_options=_APART).rowcount:
            meters.add(s, "damage", found="bytes")
        theirs = exists().where(ArtifactFile.artifact_id == Artifact.id, ArtifactFile.customer_key == ident, ArtifactFile.sha256 == sha256)
        said = f"stored bytes with SHA-256 {sha256} are no longer what they were: {why}"[:500]
        s.execute(update(Artifact).where(Artifact.quarantined.is_(None), theirs).values(quarantined=said), execution_options=_APART)

    settled(mark)


def absolve(s: Session, storage: Storage, *digests: str) -> None:
    """These blobs were found right, or were written anew, in the store as its owner has it; in the caller's transaction."""
    if storage.key:  # it was written just now, under an id of its own
        return
    owner = storage.owner if storage.vault else None
    healed = []
    for some in (digests[i : i + _AT_ONCE] for i in range(0, len(digests), _AT_ONCE)):
        known = s.scalars(select(Blob.sha256).where(Blob.sha256.in_(some), Blob.damaged_at.is_not(None))).all()
        if not known:
            continue
        copies = [DamagedCopy.owner == owner] if owner is not None else []
        s.execute(delete(DamagedCopy).where(DamagedCopy.sha256.in_(known), *copies), execution_options=_APART)
        right = (Blob.sha256.in_(known), ~exists().where(DamagedCopy.sha256 == Blob.sha256))
        s.execute(update(Blob).where(*right).values(damaged_at=None), execution_options=_APART)
        healed += known
    if healed:
        log.warning("blobs that were damaged are right again%s: %s", "" if owner is None else f" for {owner!r}", ", ".join(healed))
        s.execute(update(Artifact).where(Artifact.quarantined.is_not(None), ~_having(_HURT), ~_KEYED_HURT).values(quarantined=None), execution_options=_APART)


def check(artifact: Artifact) -> None:
    """Raises:
    Quarantined: some of its bytes are damaged.
    """
    if artifact.quarantined:
        raise Quarantined(f"{artifact.quarantined}. Upload the file once more, or run the job again: the same bytes take their place")
