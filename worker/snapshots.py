"""What a child has done so far, between it and the attempt that goes on from there: a training's state, or the finished part of a reconstruction.

    out/resume/NAME             the child writes a file and renames it; it may replace one, or add others
    tmp/<job>/recovery/NAME     in storage: what the next attempt finds; removed at the job's end
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from app.errors import StorageFull, Unavailable
from app.storage import Storage

log = logging.getLogger(__name__)
FOLDER = "resume"
_NAME = re.compile(r"[a-z0-9]{1,40}\.safetensors")
_MOST = 10_000  # files
_TIMES, _SPARE = 64, 256 << 20  # the bytes of them all: a training keeps several states of each weight in float32, of a model that may be compressed
_PART = 4 << 20


class Snapshots:
    """Args:
    out: the folder that the child writes to. It may put there what it likes: links are not followed, odd names are passed over, and files that
        together are far larger than a model's states (which cost the child nothing where they are holes) are not stored.
    model: bytes of the input.
    """

    def __init__(self, storage: Storage, job_id: str, out: Path, model: int = 0):
        self.storage, self.prefix, self.folder = storage, f"tmp/{job_id}/recovery", out / FOLDER
        self._most = _TIMES * model + _SPARE
        self._sizes: dict[str, int] = {}
        self._seen: dict[str, tuple] = {}

    def fetch(self, folder: Path) -> Path | None:
        """Copy what an earlier attempt has left into `folder`; None where there is nothing."""
        left = [found.key for found in self.storage.list(self.prefix)]
        for key in left:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / key.rsplit("/", 1)[-1]).open("wb") as file:
                file.writelines(self.storage.stream(key))
        return folder if left else None

    def keep(self) -> None:
        """Store what is new. That it cannot be stored is logged, and costs time only if this attempt fails."""
        try:
            folder = os.open(self.folder, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
        except OSError:
            return
        try:
            for name in sorted(filter(_NAME.fullmatch, os.listdir(folder)))[:_MOST]:
                self._keep(folder, name)
        except (OSError, StorageFull, Unavailable) as e:
            log.warning("a snapshot is not stored: %s", e)
        finally:
            os.close(folder)

    def _keep(self, folder: int, name: str) -> None:
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        except OSError:
            return
        try:
            found = os.fstat(fd)
            seen = (found.st_ino, found.st_mtime_ns, found.st_size)
            if stat.S_ISREG(found.st_mode) and seen != self._seen.get(name):
                sizes = self._sizes | {name: found.st_size}
                if sum(sizes.values()) > self._most:
                    log.warning("a snapshot is not stored: they would have more than %s bytes", self._most)
                    return
                self._sizes = sizes
                self.storage.put(f"{self.prefix}/{name}", _parts(fd, found.st_size), found.st_size)
                self._seen[name] = seen
        finally:
            os.close(fd)

    def drop(self) -> None:
        """The job has ended."""
        self.storage.delete_all(self.prefix)


def _parts(fd: int, size: int) -> Iterator[bytes]:
    while size and (data := os.read(fd, min(size, _PART))):
        size -= len(data)
        yield data
