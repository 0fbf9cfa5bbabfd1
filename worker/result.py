"""What a child left behind, looked at as a stranger's. The child has ended; its jail keeps it from making links, and none would be followed.

    out/files/...     the result
    out/report.json   a JSON object
    out/search.json   of a search: the recipe that it has found
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from app.errors import InputRefused, InvalidJobSpec, MalformedJson
from app.limits import check_path
from app.recipe import parse_recipe
from app.strict import parse_json

MAX_FILES = 20_000
MAX_REPORT = 64 << 20  # bytes; it is parsed here, and 100,000 tensors take some 40 MB


class Unusable(Exception):
    """The child did not leave what a child leaves."""


def files(folder: Path) -> list[str]:
    """The relative POSIX paths of the regular files below `folder`, sorted.

    Raises:
        Unusable: there is none, or too many, or something that is neither a folder nor a regular file with one name and a harmless path.
    """
    found = []
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(parent, name)
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
                found.append(_harmless(path.relative_to(folder).as_posix()))
            elif not stat.S_ISDIR(status.st_mode):
                raise Unusable(f"it left {ascii(name)[:100]}, which is no regular file")
            if len(found) > MAX_FILES:
                raise Unusable(f"it left more than {MAX_FILES} files")
    if not found:
        raise Unusable("it left no file")
    return sorted(found)


def _harmless(path: str) -> str:
    try:
        check_path(path)
    except InputRefused as e:
        raise Unusable(f"it left a file of a bad name: {e.detail}") from None
    return path


def searched(path: Path) -> dict:
    """What a search has found: `recipe`, by the rules of every recipe, and `search`, for the report.

    Raises:
        Unusable: there is none, or one that is too large, no recipe, or one that would be searched or trained once more.
    """
    try:
        if path.is_symlink() or path.stat().st_size > MAX_REPORT:
            raise Unusable(f"what it has found has more than {MAX_REPORT} bytes")
        document = parse_json(path.read_bytes())
        recipe = parse_recipe(document["recipe"])
        told = document["search"]
    except (OSError, MalformedJson, InvalidJobSpec, KeyError, TypeError) as e:
        raise Unusable(f"what it has found is not usable: {type(e).__name__}") from None
    if recipe.searches or recipe.recovers or recipe.kind != "lossy" or not isinstance(told, dict):
        raise Unusable("what it has found is no recipe")
    return {"recipe": recipe.model_dump(mode="json"), "search": told}


def report(path: Path) -> tuple[bytes, dict]:
    """The report, as bytes and parsed.

    Raises:
        Unusable: there is none, or one that is too large, no JSON object, or without the environment that goes into the provenance.
    """
    try:
        if path.is_symlink() or path.stat().st_size > MAX_REPORT:
            raise Unusable(f"its report has more than {MAX_REPORT} bytes")
        data = path.read_bytes()
        document = parse_json(data)
    except (OSError, MalformedJson) as e:
        raise Unusable(f"its report is not usable: {type(e).__name__}") from None
    if not isinstance(document, dict) or not isinstance(document.get("environment"), dict):
        raise Unusable("its report has no environment")
    return data, document
