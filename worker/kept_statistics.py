"""Statistics that an earlier job has computed, from storage and back to it, on the worker's side: the child knows nothing of either."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from app import statistics
from app.blobs import hold
from app.config import settings
from app.errors import StorageDamaged, StorageFull, Unavailable
from app.settled import settled
from app.storage import Storage

log = logging.getLogger(__name__)
Advance = Callable[[int], None]


def fetch(storage: Storage, key: str, path: Path, advance: Advance) -> bool:
    """Copy what is kept under `key` to `path`. False when there is nothing, or nothing that is whole: then it is to be computed."""
    sha256 = settled(lambda s: statistics.find(s, key), seconds=settings().lease)
    if sha256 is None:
        return False
    try:
        storage.get_file(sha256, path, advance)
    except StorageDamaged as e:
        log.warning("statistics that were kept cannot be used and are computed anew: %s", e.detail)
        path.unlink(missing_ok=True)
        settled(lambda s: statistics.forget(s, key), seconds=settings().lease)
        return False
    return True


def store(storage: Storage, key: str, owner: str, path: Path, place: str, advance: Advance) -> None:
    """Keep a file under `key`. A store that is full or away loses it, and nothing else: the job has what it needs.

    Args:
        place: where in storage its bytes may lie before they have their name.
    """
    try:
        size, sha256 = storage.put_file(place, path, advance)
        settled(lambda s: hold(s, sha256, size), seconds=settings().lease)
        storage.promote(place, sha256)
        settled(lambda s: statistics.keep(s, storage, key, owner, sha256, size), seconds=settings().lease)
    except (Unavailable, StorageFull) as e:
        log.warning("statistics were not kept: %s", e.detail)
