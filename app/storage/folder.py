"""Storage in a folder of this machine, or of a file system that all of them share."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import obstore
from obstore.exceptions import GenericError
from obstore.store import LocalStore

from app.errors import StorageFull

_FULL = re.compile(r"\(os error (?:27|28|122)\)")  # EFBIG, ENOSPC, EDQUOT
_UNFINISHED = re.compile(r"#\d+$")  # how a LocalStore names what is not whole yet; it lists no such file


class Folder:
    """Args: url: `file:///folder`; it is made when it is not there."""

    ahead = 1  # ranges read before they are asked for
    download = 1 << 20  # bytes of each range of a download

    def __init__(self, url: str):
        self.path = Path(url.removeprefix("file://"))
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.store = self.prompt = LocalStore(self.path, automatic_cleanup=True)

    def part(self, size: int) -> int:
        """Bytes of each part that an object of `size` bytes is written in."""
        return 4 << 20

    @contextmanager
    def errors(self) -> Iterator[None]:
        """What obstore raises as what `app.storage` promises."""
        try:
            yield
        except (GenericError, OSError) as e:
            if _FULL.search(str(e)):
                raise StorageFull("the storage has no room for it; delete what is not needed, or try again later") from e
            raise

    def move(self, key: str, to: str) -> None:
        obstore.rename(self.store, key, to)

    def delete(self, keys: list[str]) -> None:
        for key in keys:
            try:
                obstore.delete(self.store, key)
            except FileNotFoundError:
                pass

    def drop_unfinished(self, age: float) -> int:
        """Delete what a killed process left half written more than `age` seconds ago; returns how many."""
        old = [p for p in self.path.rglob("*#*") if _UNFINISHED.search(p.name) and p.is_file() and p.stat().st_mtime < time.time() - age]
        for path in old:
            path.unlink(missing_ok=True)
        return len(old)
