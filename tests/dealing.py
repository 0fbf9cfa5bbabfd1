"""How the tests are dealt out to several processes: those of a file together, and so all files whose tests share what takes seconds to start.

The largest shares come first, so that the small ones fill the gaps at the end.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from xdist.scheduler import LoadFileScheduling

ROOT = Path(__file__).parents[1]
SERVICE, ZYGOTES = "tests/service/", "zygotes"
_SHARED = {SERVICE: {"fragile": "fragile", "service": "service"}, "tests/worker/": {"zygotes": ZYGOTES, "follow": ZYGOTES}}
"""By folder: fixtures of a whole session, and the share of the files that take them."""


@cache
def share(file: str) -> str:
    """What the tests of `file` are dealt out with: the file alone, or all files of a share."""
    names = next((names for folder, names in _SHARED.items() if file.startswith(folder)), {})
    text = (ROOT / file).read_text() if names else ""
    return next((name for fixture, name in names.items() if re.search(rf"def \w+\([^)]*\b{fixture}\b", text)), file)


def turn(nodeid: str) -> int:
    """What comes first is dealt out first."""
    file = nodeid.split("::")[0]
    return 0 if share(file) != file else 1


class Dealing(LoadFileScheduling):
    def __init__(self, config, log):
        super().__init__(config, log)
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        return share(super()._split_scope(nodeid))
