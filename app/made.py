"""The index of a result that is no model: what lies at its root and says what it is, so that `restore` knows.

    modelpress.json   {"format": "images" | "dataset" | "codec", "version": 1, ...}

It may be a stranger's, so it is bounded and parsed strictly before anything in it is believed; what else it holds its kind checks.
"""

from __future__ import annotations

from pathlib import Path

from app.errors import InputRefused, MalformedJson
from app.formats import INDEX
from app.strict import parse_json

__all__ = ["INDEX", "MAX_INDEX", "VERSION", "index_kind", "read_index"]

MAX_INDEX = 64 << 20  # bytes
VERSION = 1
_FORMATS = ("images", "dataset")


def read_index(path: Path, form: str | None = None) -> dict:
    """The index, parsed.

    Args:
        form: which format it must be of; None: any that there is.

    Raises:
        InputRefused: unsupported-format, where it is none of ours; limit-metadata.
    """
    if not path.is_file():
        raise InputRefused("unsupported-format", f"restore takes the result of a job, and there is no {INDEX} in it")
    if (size := path.stat().st_size) > MAX_INDEX:
        raise InputRefused("limit-metadata", f"{INDEX} has {size} bytes; at most {MAX_INDEX} are taken")
    try:
        found = parse_json(path.read_bytes())
    except MalformedJson as e:
        raise InputRefused("unsupported-format", f"{INDEX} is no index: {e.detail}") from None
    if not isinstance(found, dict) or found.get("format") not in ((form,) if form else _FORMATS) or found.get("version") != VERSION:
        raise InputRefused("unsupported-format", f"{INDEX} is no index of version {VERSION} of {form or ' or '.join(_FORMATS)}")
    return found


def index_kind(path: Path) -> str:
    """The kind of the result beside an index."""
    return read_index(path)["format"]
