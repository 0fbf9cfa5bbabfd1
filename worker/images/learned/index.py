"""A trained codec as an artifact: its file, and `modelpress.json` beside it.

    {"format": "codec", "version": 1, "codec": "modelpress.codec", "sha256": hex,
     "encoder": {"file": "modelpress.encoder", "sha256": hex},    of an autoencoder; else null
     "learned": [{"pixels": hex, "columns": 768}]}    what it has learned from: `held_out.digest` of each image, and how many of its columns

It may be a stranger's: every field is checked, and so are the files (`kinds.loaded`, `hyperprior.encoder.loaded`).
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from app.errors import InputRefused
from app.limits import Limits
from app.made import INDEX, VERSION, read_index
from worker.images.hyperprior import encoder as encoders
from worker.images.hyperprior import model as hyperprior_model
from worker.images.index import MODEL
from worker.images.learned.held_out import Part
from worker.images.learned.kinds import MOST_BYTES, Trained, loaded
from worker.images.transform.coding import Damaged

ENCODER = "modelpress.encoder"


def write(folder: Path, data: bytes, learned: list[Part], encoder: bytes = b"") -> None:
    (folder / MODEL).write_bytes(data)
    beside = None
    if encoder:
        (folder / ENCODER).write_bytes(encoder)
        beside = {"file": ENCODER, "sha256": hashlib.sha256(encoder).hexdigest()}
    rows = [{"pixels": p.digest, "columns": p.columns} for p in learned]
    document = {"format": "codec", "version": VERSION, "codec": MODEL, "sha256": hashlib.sha256(data).hexdigest(), "encoder": beside, "learned": rows}
    (folder / INDEX).write_text(json.dumps(document, indent=1))


def read(folder: Path, limits: Limits = Limits()) -> Trained:
    """Raises:
    InputRefused: unsupported-format, limit-metadata.
    """
    found = read_index(folder / INDEX, "codec")
    if found.get("codec") != MODEL:
        _refuse(f"its index names no {MODEL}")
    data, rows, beside = _file(folder, MODEL, MOST_BYTES, found.get("sha256")), found.get("learned"), found.get("encoder")
    if not isinstance(rows, list) or len(rows) > limits.archive_entries or not all(map(_fits, rows)):
        _refuse("what it has learned from is not told as it should be")
    if beside is not None and (not isinstance(beside, dict) or beside.get("file") != ENCODER):
        _refuse(f"its index names another encoder than {ENCODER}")
    try:
        model, network = loaded(data), None
        if isinstance(model, hyperprior_model.Model):
            if beside is None:
                _refuse("it has no encoder")
            network = encoders.loaded(_file(folder, ENCODER, encoders.MOST_BYTES, beside.get("sha256")), model.shape)
    except Damaged as e:
        _refuse(str(e))
    return Trained(model, data, network, {r["pixels"]: r["columns"] for r in rows})


def _refuse(what: str):
    raise InputRefused("unsupported-format", f"the codec is not usable: {what}", pointer="/codec")


def _file(folder: Path, name: str, most: int, digest: object) -> bytes:
    path = folder / name
    if not path.is_file() or path.is_symlink() or path.stat().st_size > most:
        _refuse(f"there is no {name} of at most {most} bytes beside its index")
    data = path.read_bytes()
    if digest != hashlib.sha256(data).hexdigest():
        _refuse(f"{name} is another than its index says")
    return data


def _fits(row: object) -> bool:
    return (
        isinstance(row, dict) and row.keys() == {"pixels", "columns"} and isinstance(row["pixels"], str) and re.fullmatch("[0-9a-f]{64}", row["pixels"]) is not None
        and type(row["columns"]) is int and row["columns"] >= 0
    )  # fmt: skip
