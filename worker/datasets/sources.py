"""The files of a data set as arrays, tables, or bytes."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from app.errors import InputRefused
from app.formats import suffix
from app.limits import Limits, check_path, check_tensor_name, shown
from worker.datasets import csv_file
from worker.datasets.csv_dialect import Dialect, Text
from worker.datasets.npy import ArrayFile, open_npy
from worker.datasets.tables import Table, open_arrow, open_parquet
from worker.formats.archive import create, extract_zip, member_chunks
from worker.formats.member_names import unsafe
from worker.formats.zip_walk import STORED, walk_zip

FORMATS = {".npy": "npy", ".npz": "npz", ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow", ".csv": "csv", ".tsv": "csv"}
_ONE = "array"
"""The name of the array of a .npy file."""


@dataclass
class Source:
    """A file of the data set: arrays, or a table, or neither (kept as bytes, for `reason`).

    Args:
        name: its relative POSIX path.
        stored: of a .npz, whether its members are stored and not deflated.
        dialect: of a csv.
        notes: what was done to a column or array, by its name.
        cut: how many rows a column or array had that has lost some, by its name.
    """

    name: str
    format: str
    path: Path
    arrays: dict[str, ArrayFile] = field(default_factory=dict)
    stored: bool = False
    table: Table | None = None
    dialect: Dialect | None = None
    reason: str = ""
    notes: dict[str, str] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)


def open_sources(folder: Path, scratch: Path, limits: Limits = Limits()) -> list[Source]:
    """Every file, in the order of their names; a single zip is unpacked.

    Raises:
        InputRefused: unsupported-format where there is no data at all; what the readers of the formats raise.
    """
    files = _listed(folder, limits)
    if len(files) == 1 and suffix(next(iter(files))) == ".zip":
        target = Path(tempfile.mkdtemp(prefix="extracted-", dir=scratch))
        extract_zip(next(iter(files.values())), target, limits)
        files = _listed(target, limits)
    sources = [_open(name, path, scratch, limits) for name, path in files.items()]
    if all(s.format == "other" for s in sources):
        raise InputRefused("unsupported-format", f"there is no data set among {len(files)} files ({', '.join(map(shown, list(files)[:5]))}); read are {', '.join(FORMATS)}, and .zip of them")
    return sources


def _listed(folder: Path, limits: Limits) -> dict[str, Path]:
    files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    if len(files) > limits.archive_entries:
        raise InputRefused("limit-entries", f"there are {len(files)} files; at most {limits.archive_entries} are taken")
    for name in files:
        check_path(name, limits)
    return files


def _open(name: str, path: Path, scratch: Path, limits: Limits) -> Source:
    match FORMATS.get(suffix(name)):
        case "npy":
            return Source(name, "npy", path, {_ONE: open_npy(path, name)})
        case "npz":
            return _open_npz(name, path, scratch, limits)
        case "parquet":
            return Source(name, "parquet", path, table=open_parquet(path, name, limits))
        case "arrow":
            return Source(name, "arrow", path, table=open_arrow(path, name))
        case "csv":
            found = csv_file.open_csv(path, name)
            if isinstance(found, Text):
                return Source(name, "text", path, reason=found.reason)
            return Source(name, "csv", path, table=found[1], dialect=found[0])
        case _:
            return Source(name, "other", path, reason="no data set, kept as it is")


def _open_npz(name: str, path: Path, scratch: Path, limits: Limits) -> Source:
    members = [m for m in walk_zip(path, limits) if not m.is_folder]
    target = Path(tempfile.mkdtemp(prefix="arrays-", dir=scratch))
    arrays = {}
    with path.open("rb") as f:
        for i, member in enumerate(members):
            if not member.name.endswith(".npy"):
                raise unsafe(f"member {shown(member.name)} of {shown(name)} is no .npy file")
            check_tensor_name(short := member.name.removesuffix(".npy"), limits)
            with create(target, f"{i}.npy") as out:
                for chunk in member_chunks(f, member):
                    out.write(chunk)
            arrays[short] = open_npy(target / f"{i}.npy", member.name)
    return Source(name, "npz", path, arrays, all(m.method == STORED for m in members))
