"""The index of coded images, `modelpress.json` beside them: what each file was called, and what it decodes to.

    {"format": "images", "version": 1,
     "model": null,          or the name of the learned transform's file beside it
     "images": [
      {"path": "a/b.png",    as it was called
       "file": "a/b.avif",   what it is now
       "codec": "avif",      one of CODECS, or "original": the file is as it was
       "mode": "RGB", "width": 768, "height": 512,
       "pixels": hex,        SHA-256 of the decoded [H, W, C] bytes
       "exact": false,       whether these are the original's
       "whole": false}]}     whether the original file itself comes out of it

It may be a stranger's: every field is checked before anything is opened by it.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from app.errors import InputRefused
from app.limits import Limits, check_path
from app.made import INDEX, VERSION, read_index
from worker.formats.member_names import check_names

ORIGINAL = "original"
MODEL = "modelpress.codec"
MODEL_BYTES = 8 << 20
_MODES = ("L", "RGB", "RGBA")


@dataclass(frozen=True)
class Entry:
    path: str
    file: str
    codec: str
    mode: str | None = None
    width: int | None = None
    height: int | None = None
    pixels: str | None = None
    exact: bool = True
    whole: bool = True


def write(folder: Path, entries: list[Entry], model: bytes = b"") -> None:
    if model:
        (folder / MODEL).write_bytes(model)
    document = {"format": "images", "version": VERSION, "model": MODEL if model else None, "images": [asdict(e) for e in entries]}
    (folder / INDEX).write_text(json.dumps(document, indent=1))


def read(folder: Path, codecs: tuple[str, ...], limits: Limits = Limits()) -> list[Entry]:
    """Raises: InputRefused: unsupported-format, unsafe-archive, limit-entries, limit-pixels."""
    rows = read_index(folder / INDEX, "images").get("images")
    if not isinstance(rows, list) or not 1 <= len(rows) <= limits.archive_entries:
        raise InputRefused("limit-entries" if isinstance(rows, list) else "unsupported-format", f"{INDEX} lists no images, or more than {limits.archive_entries}")
    entries = [_entry(i, row, codecs, limits) for i, row in enumerate(rows)]
    for names in ([e.path for e in entries], [e.file for e in entries]):
        check_names(names, limits)
    for entry in entries:
        if not (folder / entry.file).is_file():
            raise InputRefused("unsupported-format", f"{INDEX} names {ascii(entry.file)[:100]}, which is not there")
    return entries


def _entry(i: int, row: object, codecs: tuple[str, ...], limits: Limits) -> Entry:
    def refuse(what: str):
        raise InputRefused("unsupported-format", f"image {i} in {INDEX} has {what}")

    if not isinstance(row, dict) or row.keys() != Entry.__dataclass_fields__.keys():
        refuse("not the fields of an image")
    entry = Entry(**row)
    for name in ("path", "file"):
        if not isinstance(getattr(entry, name), str):
            refuse(f"no {name}")
        check_path(getattr(entry, name), limits)
    if entry.codec == ORIGINAL:
        return entry
    if entry.codec not in codecs or entry.mode not in _MODES or type(entry.exact) is not bool or type(entry.whole) is not bool:
        refuse("an unknown codec or mode")
    if type(entry.width) is not int or type(entry.height) is not int or entry.width < 1 or entry.height < 1:
        refuse("no size")
    if entry.width * entry.height > limits.image_pixels:
        raise InputRefused("limit-pixels", f"image {i} in {INDEX} has {entry.width} x {entry.height} pixels; at most {limits.image_pixels} are taken")
    if not isinstance(entry.pixels, str) or not re.fullmatch("[0-9a-f]{64}", entry.pixels):
        refuse("no digest of its pixels")
    return entry


def read_model(folder: Path) -> bytes:
    """The learned transform's file; empty where the images were coded without one.

    Raises:
        InputRefused: unsupported-format.
    """
    named = read_index(folder / INDEX, "images").get("model")
    if named is None:
        return b""
    if named != MODEL or not (folder / MODEL).is_file() or (folder / MODEL).stat().st_size > MODEL_BYTES:
        raise InputRefused("unsupported-format", f"{INDEX} names a transform, and there is no usable {MODEL}")
    return (folder / MODEL).read_bytes()
