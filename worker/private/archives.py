"""What an archive says beside its files: comments, extra fields, owners. No result carries any of it; the report tells that it was there."""

from __future__ import annotations

import re
import tarfile
import zipfile
from pathlib import Path

from app.limits import Limits, shown
from worker.formats.zip_walk import walk_zip
from worker.private import binaries
from worker.private.patterns import Span, spans, without
from worker.private.texts import finding

_NOBODY = ("", "root", "wheel", "users", "staff", "nobody", "nogroup")
_MOST = 16 << 20
_HOME = re.compile(r"(?:.*/)?(?:home|Users)/([^/]+)/")


def zip_gaps(path: Path, limits: Limits) -> bytes:
    """The bytes of a zip that belong to no member: headers, names, extra fields, comments; at most 16 MiB."""
    out, at = bytearray(), 0
    with path.open("rb") as f:
        for begin, end in [*sorted((m.offset, m.offset + m.csize) for m in walk_zip(path, limits, entries=1 << 20)), (path.stat().st_size,) * 2]:
            f.seek(at)
            out += f.read(max(0, min(begin - at, _MOST - len(out)))) + b"\0"
            at = max(at, end)
    return bytes(out)


def look(path: Path, name: str, kind: str, limits: Limits) -> list[dict]:
    """Findings beside the files of an archive that has been extracted, and so been checked, already. `kind`: zip or tar."""
    if kind == "zip":
        with zipfile.ZipFile(path) as z:
            comments = [z.comment, *(c for m in z.infolist()[:10_000] for c in (m.comment, m.extra))]
        found = [f for c in comments if c for f in binaries.look(f"{name}: comment", c).findings]
        return found or binaries.look(f"{name}: headers", zip_gaps(path, limits)).findings
    found, owners = [], set()
    with tarfile.open(path, "r|*") as t:
        for member in t:
            owners |= {o for o in (member.uname, member.gname) if o.lower() not in _NOBODY}
            for key, value in member.pax_headers.items():
                if key in ("uname", "gname"):
                    continue
                found += [f | {"where": f"{name}: {shown(key)}"} for f in binaries.look(name, value.encode()).findings]
    return found + [finding(f"{name}: owner", "a user name", owner) for owner in sorted(owners)]


def renamed(path: str) -> tuple[str, list[Span]]:
    """A file's path without the user's part (`home/alice/model/x` -> `model/x`) and without keys and addresses; and what stood there."""
    match = _HOME.match(path)
    found = [Span(*match.span(1), "a user name")] if match else []
    rest = path[match.end() :] if match else path
    told = spans(rest)
    start = len(path) - len(rest)
    return without(rest, told), found + [Span(start + s.start, start + s.end, s.what) for s in told]
