"""A trained codec as an artifact: its file, and `modelpress.json` beside it.

    {"format": "codec", "version": 1, "codec": "modelpress.codec", "sha256": hex,
     "learned": [{"pixels": hex, "columns": 768}]}    what it has learned from: `held_out.digest` of each image, and how many of its columns

It may be a stranger's: every field is checked, and so is the file (`model.loaded`).
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from app.errors import InputRefused
from app.limits import Limits
from app.made import INDEX, VERSION, read_index
from worker.images.index import MODEL
from worker.images.learned.held_out import Part
from worker.images.learned.model import MOST_BYTES, Model, loaded
from worker.images.transform.coding import Damaged


def write(folder: Path, data: bytes, learned: list[Part]) -> None:
    (folder / MODEL).write_bytes(data)
    rows = [{"pixels": p.digest, "columns": p.columns} for p in learned]
    document = {"format": "codec", "version": VERSION, "codec": MODEL, "sha256": hashlib.sha256(data).hexdigest(), "learned": rows}
    (folder / INDEX).write_text(json.dumps(document, indent=1))


def read(folder: Path, limits: Limits = Limits()) -> tuple[Model, bytes, dict[str, int]]:
    """The codec, its file, and digest -> columns of what it has learned from.

    Raises:
        InputRefused: unsupported-format, limit-metadata.
    """

    def refuse(what: str):
        raise InputRefused("unsupported-format", f"the codec is not usable: {what}", pointer="/codec")

    found, path = read_index(folder / INDEX, "codec"), folder / MODEL
    if found.get("codec") != MODEL or not path.is_file() or path.is_symlink() or path.stat().st_size > MOST_BYTES:
        refuse(f"there is no {MODEL} of at most {MOST_BYTES} bytes beside its index")
    data, rows = path.read_bytes(), found.get("learned")
    if found.get("sha256") != hashlib.sha256(data).hexdigest():
        refuse("its file is another than its index says")
    if not isinstance(rows, list) or len(rows) > limits.archive_entries or not all(map(_fits, rows)):
        refuse("what it has learned from is not told as it should be")
    try:
        return loaded(data), data, {r["pixels"]: r["columns"] for r in rows}
    except Damaged as e:
        refuse(str(e))


def _fits(row: object) -> bool:
    return (
        isinstance(row, dict) and row.keys() == {"pixels", "columns"} and isinstance(row["pixels"], str) and re.fullmatch("[0-9a-f]{64}", row["pixels"]) is not None
        and type(row["columns"]) is int and row["columns"] >= 0
    )  # fmt: skip
