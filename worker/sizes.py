"""What the files of a folder take."""

from __future__ import annotations

from pathlib import Path


def sizes(folder: Path) -> dict[str, int]:
    """Path -> bytes of the regular files in `folder`, sorted."""
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
