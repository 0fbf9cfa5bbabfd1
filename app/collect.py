"""Garbage collection of blobs: what nothing refers to is marked, waited for, looked at again, and deleted, row and bytes.

    referred    by an artifact's file, a signature, a job's report, statistics that are kept; or named by what a worker has handed over to be signed
    marked      unreferred, for `orphan_age` before it goes: longer than anything takes from `hold` to the row that refers
    stray       bytes without a row, left by a process that died in between: they get a row, marked, and go the same way

A row goes under lock, only while its mark stands, and its bytes go before the lock does. Who wants the blob meanwhile waits for the lock
(`app.blobs.hold`), and looks for the bytes in the transaction that refers to them (`app.blobs.refer`). So no order of events loses what is referred to,
however short `orphan_age` is. Each batch is a transaction of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from sqlalchemy import delete, exists, or_, select, update
from sqlalchemy.orm import Session

from app.blobs import meet
from app.config import settings
from app.db import now, reading, session
from app import customer_keys
from app.models import SIGNING, ApiKey, Artifact, ArtifactFile, Blob, CustomerKeyCheck, DamagedCopy, Job, Signature, Statistic, Upload
from app.storage import Storage

BATCH = 1000  # rows
FOLDERS = [f"blobs/{n:02x}" for n in range(256)]
SEALED = [f"sealed/{n:02x}" for n in range(256)]
KEYED = [f"keyed/{n:02x}" for n in range(256)]
_APART = {"synchronize_session": False}
_REFERRED = or_(*(exists().where(column == Blob.sha256) for column in (ArtifactFile.sha256, Signature.sha256, Job.report_sha256, Statistic.sha256)))


def collect(storage: Storage) -> int:
    """One round over all blobs. Returns how many were deleted."""
    deleted, last = 0, ""
    while batch := _after(last):
        if ripe := _mark(batch):
            spared = _to_be_signed()  # asked after the marks: whoever is to be signed later holds its blobs anew
            deleted += sum(_drop(storage, sha256) for sha256 in ripe if sha256 not in spared)
        last = batch[-1]
    return deleted


def owners_of(s: Session, sha256: str) -> list[str]:
    """Whose artifacts, jobs or statistics refer to a blob."""
    return sorted({owner for owner, _ in _pairs(s, sha256, sha256 + "g")})


def _pairs(s: Session, low: str, high: str) -> set[tuple[str, str]]:
    """(owner, SHA-256) of the blobs between the two that an owner has, or that wait to be signed for one; not of what lies under customers' keys."""
    found: set[tuple[str, str]] = set()
    for file, *apart in ((ArtifactFile, ArtifactFile.customer_key.is_(None)), (Signature,)):
        query = select(Artifact.owner, file.sha256).join(Artifact, Artifact.id == file.artifact_id).where(file.sha256.between(low, high), *apart)
        found |= {(o, d) for o, d in s.execute(query.distinct())}
    for owner, digest in ((Job.owner, Job.report_sha256), (Statistic.owner, Statistic.sha256)):
        found |= {(o, d) for o, d in s.execute(select(owner, digest).where(digest.between(low, high)).distinct())}
    for owner, handoff, keyed in s.execute(select(Job.owner, Job.handoff, Job.customer_key).where(Job.state == SIGNING)):
        found |= {(owner, f["sha256"]) for f in [*((handoff or {}).get("files", []) if keyed is None else []), *([handoff["report"]] if handoff and "report" in handoff else [])]}
    return found


def collect_sealed(storage: Storage, folders: Iterable[str]) -> int:
    """Delete the encrypted blobs in these of SEALED that their owner no longer has and that were written longer than `orphan_age` ago: each owner's lie apart, whatever
    others have. Returns how many.

    The blob's row is locked while its owner is looked for once more and the bytes go; what no row is known for was left by a process that died, or by an owner who has nothing.
    """
    if not storage.vault:
        return 0
    deleted = 0
    for folder in folders:
        first = folder.rsplit("/", 1)[1]
        with reading() as s:
            owners = set(s.scalars(select(ApiKey.owner).distinct()))
            pairs = _pairs(s, first, first + "g")
            known = {storage.vault.path(o, d): (o, d) for d in s.scalars(select(Blob.sha256).where(Blob.sha256.between(first, first + "g"))) for o in owners | {o for o, _ in pairs}}
        kept = {storage.vault.path(o, d) for o, d in pairs}
        for found in [*storage.list(folder)]:
            if found.key in kept or found.modified > time.time() - settings().orphan_age:
                continue
            with session() as s, s.begin():
                if pair := known.get(found.key):
                    s.execute(select(Blob.sha256).where(Blob.sha256 == pair[1]).with_for_update())
                    if pair in _pairs(s, pair[1], pair[1] + "g"):
                        continue
                    s.execute(delete(DamagedCopy).where(DamagedCopy.owner == pair[0], DamagedCopy.sha256 == pair[1]), execution_options=_APART)
                storage.delete(found.key)
                deleted += 1
    return deleted


def collect_keyed(storage: Storage, folders: Iterable[str]) -> int:
    """Delete what is stored under customers' keys in these of KEYED that no file refers to any more and that was written longer than `orphan_age` ago, and what told such keys
    from wrong ones. Returns how many objects. A key's id is never given out twice, so nobody can want an object again that nothing refers to."""
    deleted = 0
    for folder in folders:
        first, before = folder.rsplit("/", 1)[1], time.time() - settings().orphan_age
        old = [found.key for found in storage.list(folder) if found.modified < before]
        with reading() as s:
            files = ArtifactFile.customer_key.between(first, first + "g")
            needed = {(ident, sha256) for ident, sha256 in s.execute(select(ArtifactFile.customer_key, ArtifactFile.sha256).where(files))}
            signing = select(Job.customer_key, Job.handoff).where(Job.state == SIGNING, Job.customer_key.between(first, first + "g"))
            needed |= {(ident, f["sha256"]) for ident, handoff in s.execute(signing) for f in handoff["files"]}
            keys = customer_keys.known(s, {ident for ident, _ in needed})
        gone = set(old) - {keys[ident].path(sha256) for ident, sha256 in needed}
        storage.delete(*gone)
        deleted += len(gone)
        unused = (~exists().where(column == CustomerKeyCheck.id) for column in (ArtifactFile.customer_key, Upload.customer_key, Job.customer_key))
        with session() as s, s.begin():
            mine = (CustomerKeyCheck.id.between(first, first + "g"), CustomerKeyCheck.created_at < now() - settings().orphan_age)
            s.execute(delete(CustomerKeyCheck).where(*mine, *unused), execution_options=_APART)
    return deleted


def collect_keys(storage: Storage) -> int:
    """Delete data keys that no object needs, as old as anything else before it goes. Returns how many."""
    if not storage.vault:
        return 0
    with storage.place.errors():
        return storage.vault.drop_orphans(settings().orphan_age)


def _after(last: str) -> list[str]:
    with reading() as s:
        return list(s.scalars(select(Blob.sha256).where(Blob.sha256 > last).order_by(Blob.sha256).limit(BATCH)))


def _to_be_signed() -> set[str]:
    """What waits to be signed, for however long: the files of cached results, and what a signing that broke off has promoted."""
    with reading() as s:
        handoffs = s.scalars(select(Job.handoff).where(Job.state == SIGNING)).all()
    return {f["sha256"] for h in handoffs if h for f in [*h["files"], *([h["report"]] if "report" in h else [])]}


def _mark(batch: list[str]) -> list[str]:
    """Bring the marks of a batch up to date; returns what is ripe."""
    these = Blob.sha256.between(batch[0], batch[-1])
    with session() as s, s.begin():
        s.execute(update(Blob).where(these, Blob.marked_at.is_not(None), _REFERRED).values(marked_at=None), execution_options=_APART)
        s.execute(update(Blob).where(these, Blob.marked_at.is_(None), ~_REFERRED).values(marked_at=now()), execution_options=_APART)
        return list(s.scalars(select(Blob.sha256).where(these, Blob.marked_at < now() - settings().orphan_age, ~_REFERRED)))


def _drop(storage: Storage, sha256: str) -> bool:
    with session() as s, s.begin():  # the bytes go while the row's lock is held, so that nobody can hold the blob in between
        still = (Blob.sha256 == sha256, Blob.marked_at < now() - settings().orphan_age, ~_REFERRED)
        if gone := s.execute(delete(Blob).where(*still), execution_options=_APART).rowcount == 1:
            storage.delete(sha256)
        return gone


def adopt(storage: Storage, folders: Iterable[str]) -> int:
    """Give a row, marked, to bytes in these of FOLDERS that have none. Returns how many had none."""
    found = 0
    for folder in folders:
        there = {stat.key.rsplit("/", 1)[1]: stat.size for stat in storage.list(folder)}
        first = folder.rsplit("/", 1)[1]
        with reading() as s:
            known = set(s.scalars(select(Blob.sha256).where(Blob.sha256.between(first, first + "g"))))
        for sha256 in sorted(there.keys() - known):
            with session() as s, s.begin():
                found += meet(s, sha256, there[sha256])
    return found

