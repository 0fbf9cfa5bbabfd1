"""How the tests are dealt out to several processes: those of a file together, and so all files whose tests share what takes seconds to start."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from xdist.scheduler import LoadFileScheduling

ROOT = Path(__file__).parents[1]
SHARED = {"tests/service": ("fragile", "service"), "tests/worker": ("zygotes", "follow")}
"""Fixtures of a whole session: a service to be killed, one to be used, and what forks children with torch imported (`follow` is of the same files)."""


@cache
def share(file: str) -> str:
    """What the tests of `file` are dealt out with: itself alone, or all files that take the same fixture of SHARED."""
    names = next((names for folder, names in SHARED.items() if file.startswith(folder)), ())
    text = (ROOT / file).read_text()
    taken = [name for name in names if re.search(rf"def \w+\([^)]*\b{name}\b", text)]
    return ("zygotes" if taken[0] == "follow" else taken[0]) if taken else file


class Dealing(LoadFileScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return share(super()._split_scope(nodeid))
