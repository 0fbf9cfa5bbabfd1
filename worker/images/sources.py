"""The files of an input of images: one image, a folder of them, or one archive, which is extracted."""

from __future__ import annotations

import tempfile
from pathlib import Path

from app.errors import InputRefused
from app.formats import IMAGES, TAR, suffix
from app.limits import Limits, check_path
from worker.formats.archive import extract_zip
from worker.formats.tar_walk import extract_tar


def sources(inp: Path, scratch: Path, limits: Limits = Limits()) -> dict[str, Path]:
    """Relative POSIX path -> file, sorted.

    Raises:
        InputRefused: what extracting raises; invalid-image: there is no image; limit-entries.
    """
    files = _files(inp)
    if len(files) == 1 and (end := suffix(name := next(iter(files)))) in (".zip", *TAR):
        target = Path(tempfile.mkdtemp(prefix="extracted-", dir=scratch))
        (extract_zip if end == ".zip" else extract_tar)(files[name], target, limits)
        files = _files(target)
    if len(files) > limits.archive_entries:
        raise InputRefused("limit-entries", f"there are {len(files)} files; at most {limits.archive_entries} are taken")
    for path in files:
        check_path(path, limits)
    if not any(suffix(path) in IMAGES for path in files):
        raise InputRefused("invalid-image", f"there is no image among {len(files)} files; read are {', '.join(IMAGES)}")
    return files


def _files(folder: Path) -> dict[str, Path]:
    return {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}


def placed(wanted: list[tuple[str, str]]) -> dict[str, str]:
    """Names of what is made, no two alike on any system, each as near to its original's as it can be.

    Args:
        wanted: (path, suffix that the new file has; empty: the path stays).

    Returns:
        path -> new path: `a/b.png` becomes `a/b.avif`, or `a/b.png.avif` where that is taken.
    """
    taken = {path.casefold() for path, end in wanted if not end}
    made = {path: path for path, end in wanted if not end}
    for path, end in wanted:
        if not end:
            continue
        stem = path[: -len(suffix(path))]
        names = [stem + end, path + end, *(f"{stem}-{n}{end}" for n in range(2, len(wanted) + 3))]
        made[path] = next(n for n in names if n.casefold() not in taken)
        taken.add(made[path].casefold())
    return made
