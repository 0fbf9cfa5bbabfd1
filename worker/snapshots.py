"""Snapshots of a training, between the child that makes them and the attempt that goes on from them.

    out/resume.safetensors    the child replaces it every now and then
    tmp/<job>/recovery        in storage: what the next attempt finds; removed at the job's end
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from app.errors import StorageFull, Unavailable
from app.storage import Storage

log = logging.getLogger(__name__)
NAME = "resume.safetensors"
_PART = 4 << 20


class Snapshots:
    """Args: out: the folder that the child writes to."""

    def __init__(self, storage: Storage, job_id: str, out: Path):
        self.storage, self.key, self.path = storage, f"tmp/{job_id}/recovery", out / NAME
        self._seen: tuple | None = None

    def fetch(self, path: Path) -> Path | None:
        """Copy what an earlier attempt has left to `path`; None where there is nothing."""
        if not self.storage.exists(self.key):
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.writelines(self.storage.stream(self.key))
        return path

    def keep(self) -> None:
        """Store the child's snapshot if there is a new one. That it cannot be stored is logged, and costs time only if this attempt fails."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # the child may put there what it likes
        except OSError:
            return
        try:
            found = os.fstat(fd)
            seen = (found.st_ino, found.st_mtime_ns, found.st_size)
            if stat.S_ISREG(found.st_mode) and seen != self._seen:
                self.storage.put(self.key, _parts(fd, found.st_size), found.st_size)
                self._seen = seen
        except (OSError, StorageFull, Unavailable) as e:
            log.warning("a snapshot is not stored: %s", e)
        finally:
            os.close(fd)

    def drop(self) -> None:
        """The job has ended."""
        if self.storage.exists(self.key):
            self.storage.delete(self.key)


def _parts(fd: int, size: int) -> Iterator[bytes]:
    while size and (data := os.read(fd, min(size, _PART))):
        size -= len(data)
        yield data
