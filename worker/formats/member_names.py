"""Names of an archive's members: each safe on its own, and no two the same file anywhere."""

from __future__ import annotations

import unicodedata

from app.errors import InputRefused
from app.limits import Limits, check_path, shown


def unsafe(why: str) -> InputRefused:
    return InputRefused("unsafe-archive", why)


def invalid(why: str) -> InputRefused:
    return InputRefused("invalid-archive", why)


def check_names(names: list[str], limits: Limits) -> None:
    """Every name is safe, and no two are one on a system that folds case or composes accents; a file is not also a folder.

    Raises:
        InputRefused: unsafe-archive or limit-name.
    """
    folders: set[str] = set()  # with those that only stand in a name: long names of many levels make more of them than there are members
    files: dict[str, str] = {}
    for name in names:
        check_path(name.rstrip("/") if name.endswith("/") and not name.endswith("//") else name, limits)
        key = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name.rstrip("/")).casefold())
        if name.endswith("/"):
            folders.add(key)
            key += "/"
        if key in files:
            raise unsafe(f"members {shown(files[key])} and {shown(name)} are one and the same on some systems")
        files[key] = name
        parts = key.rstrip("/").split("/")
        folders.update("/".join(parts[:i]) for i in range(1, len(parts)))
        if len(folders) > limits.archive_entries:
            raise InputRefused("limit-entries", f"the archive has more than {limits.archive_entries} folders")
    if clash := next((k for k in files if k in folders), None):
        raise unsafe(f"member {shown(files[clash])} is a file and a folder")
