"""The scrubber: reads all of storage through, slowly, and holds it against its digests, so that damage is found before anybody asks for the bytes.

It runs in the control process, at `scrub_rate` bytes a second, the blob that was not looked at for longest first, each once in `scrub_period` seconds.
Those known to be damaged come every ten minutes: an operator may have put the right bytes back, and then their quarantine ends. Several control
processes share the work.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from time import monotonic

from sqlalchemy import func, or_, select, update

from app import meters
from app.chunks import Chunked
from app.collect import owners_of
from app.config import settings
from app.db import now, reading, session
from app.errors import ModelpressError, WrongBytes
from app.models import ArtifactFile, Blob
from app.quarantine import absolve, condemn
from app.storage import Storage

log = logging.getLogger(__name__)
AGAIN = 600.0  # seconds between two looks at a damaged blob
IDLE = 30.0  # seconds before the next look when nothing is due
_APART = {"synchronize_session": False}


def take() -> tuple[str, int] | None:
    """(SHA-256, bytes) of the blob whose turn it is, which is another one's turn from now on; None when none is due."""
    due = or_(Blob.checked_at.is_(None), Blob.checked_at < now() - settings().scrub_period)
    again = Blob.damaged_at.is_not(None) & (Blob.checked_at < now() - AGAIN)
    for which in (again, due):
        with session() as s, s.begin():
            query = select(Blob.sha256, Blob.size, Blob.checked_at).where(which, Blob.marked_at.is_(None))
            found = s.execute(query.order_by(Blob.checked_at.asc().nulls_first(), Blob.sha256).limit(1)).first()
            if found is None:
                continue
            same = Blob.checked_at.is_(None) if found.checked_at is None else Blob.checked_at == found.checked_at
            mine = update(Blob).where(Blob.sha256 == found.sha256, same).values(checked_at=now())
            return (found.sha256, found.size) if s.execute(mine, execution_options=_APART).rowcount else None
    return None


def scrub(storage: Storage, sha256: str, size: int, pause: Callable[[float], object]) -> bool:
    """Read one blob through. `pause` is called with the seconds that keep to the rate. False: it is not what it was."""
    if storage.vault and storage.owner is None:
        with reading() as s:
            owners = owners_of(s, sha256)
        return all([scrub(storage.of(owner), sha256, size, pause) for owner in owners])
    digest, read, begun = Chunked(), 0, monotonic()
    try:
        for batch in storage.stream(sha256):
            digest.update(batch)
            read += len(batch)
            pause(max(0.0, read / settings().scrub_rate - (monotonic() - begun)))
    except WrongBytes:  # encrypted ones that do not open
        read = -1
    except FileNotFoundError:
        if not _wanted(sha256) or _keyed(sha256):
            return True
        log.error("blob %s is missing from storage", sha256)
        with session() as s, s.begin():
            meters.add(s, "damage", found="missing")
        return False
    right = (read, digest.hexdigest()) == (size, sha256)
    with session() as s, s.begin():
        meters.add(s, "scrubbed", count=max(read, 0))
        if right:
            absolve(s, storage, sha256)
            if chunks := digest.chunks():
                s.execute(update(Blob).where(Blob.sha256 == sha256).values(chunks=func.coalesce(Blob.chunks, chunks)), execution_options=_APART)
    if not right:
        condemn(storage, sha256, "some of its bytes are others" if read in (size, -1) else f"it has {read} bytes, and was stored with {size}")
    return right


def _wanted(sha256: str) -> bool:
    """Whether it still has a row that no collection has marked."""
    with session() as s:
        return s.scalar(select(Blob.sha256).where(Blob.sha256 == sha256, Blob.marked_at.is_(None))) is not None


def _keyed(sha256: str) -> bool:
    """Whether all that has it has it under a customer's key, which is needed to read it."""
    with reading() as s:
        under = s.scalar(select(ArtifactFile.sha256).where(ArtifactFile.sha256 == sha256, ArtifactFile.customer_key.is_not(None)).limit(1))
        return under is not None and not owners_of(s, sha256)


def keep_scrubbing(stopped: threading.Event) -> None:
    """Until `stopped`. A rate of 0 switches it off."""
    while settings().scrub_rate and not stopped.is_set():
        try:
            found = take()
            if found is not None:
                scrub(Storage(), *found, stopped.wait)
        except Exception as e:  # whatever store or database raise: the next look may fare better
            log.log(logging.WARNING if isinstance(e, ModelpressError) else logging.ERROR, "the scrubber goes on later: %s: %s", type(e).__name__, e)
            found = None
        stopped.wait(0.1 if found else IDLE)
