"""`modelpress.json` of a data set: which files there were, and how each of them is stored. A stranger may have written it, so it is held to this form.

    {"format": "dataset", "version": 1, "files": [{"path", "format", "stem", "arrays" | "table" | "size", ...}]}

`stem` is the path of what is stored, without its ending: NAME.arrays (frames), NAME.bytes (frames), or the files of `worker.datasets.table_files`.
"""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, ValidationError

from app.limits import Limits, check_path, check_tensor_name
from app.made import INDEX, VERSION, read_index
from app.strict import Strict
from worker.datasets.npy import Layout, check_layout, dtype_of
from worker.datasets.refusals import damaged

Count = Annotated[int, Field(ge=0, lt=1 << 48)]


class GridEntry(Strict):
    step: Annotated[float, Field(ge=0)]
    ratio: Annotated[float, Field(ge=1, le=1e6)]


class ArrayEntry(Strict):
    """`descr` is numpy's, as Python writes it."""

    name: str
    descr: Annotated[str, Field(max_length=4096)]
    fortran: bool
    shape: Annotated[list[Count], Field(max_length=32)]
    grid: GridEntry | None = None

    def layout(self) -> Layout:
        """Raises: InputRefused: invalid-dataset, invalid-numpy, unsafe-pickle."""
        try:
            descr = ast.literal_eval(self.descr)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise damaged("the dtype of an array is no literal") from None
        dtype_of(descr)
        check_layout(layout := Layout(descr, self.fortran, tuple(self.shape)), self.name)
        return layout


class TableEntry(Strict):
    model_config = ConfigDict(str_max_length=32 << 20)

    schema_: Annotated[str, Field(alias="schema")]
    ways: list[Literal["parquet", "numbers", "bounded", "arrow"]]
    groups: Annotated[list[Annotated[int, Field(ge=1, le=1 << 26)]], Field(max_length=1 << 20)]
    grids: list[GridEntry]


class DialectEntry(Strict):
    model_config = ConfigDict(str_max_length=2 << 20)

    delimiter: Literal[",", ";", "\t", "|"]
    quoting: Literal["needed", "all", "text"]
    newline: Literal["\n", "\r\n"]
    header: str
    ended: bool


class FileEntry(Strict):
    path: str
    format: Literal["npy", "npz", "parquet", "arrow", "csv", "text", "other"]
    stem: str
    arrays: list[ArrayEntry] | None = None
    stored: bool = False
    table: TableEntry | None = None
    dialect: DialectEntry | None = None
    size: Count | None = None


class Index(Strict):
    format: Literal["dataset"]
    version: Literal[1]
    files: Annotated[list[FileEntry], Field(min_length=1, max_length=10_000)]
    kept: list[dict[str, str]] = []


def write_index(folder: Path, files: list[dict], kept: list[dict]) -> None:
    (folder / INDEX).write_text(json.dumps({"format": "dataset", "version": VERSION, "files": files, "kept": kept}, allow_nan=False))


def load_index(folder: Path, limits: Limits = Limits()) -> Index:
    """Raises: InputRefused: unsupported-format, invalid-dataset, and what unsafe names are refused for."""
    data = read_index(folder / INDEX, "dataset")
    try:
        index = Index.model_validate(data)
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        raise damaged(f"{INDEX} is not as it must be at /{'/'.join(map(str, first['loc']))[:200]}: {first['msg'][:200]}") from None
    for path in (p for f in index.files for p in (f.path, f.stem)):
        check_path(path, limits)
    if len({f.path.casefold() for f in index.files}) != len(index.files) or len({f.stem for f in index.files}) != len(index.files):
        raise damaged(f"{INDEX} names a file twice")
    for f in index.files:
        wanted = {"npy": "arrays", "npz": "arrays", "parquet": "table", "arrow": "table", "csv": "table", "text": "size", "other": "size"}[f.format]
        if getattr(f, wanted) is None or (f.format == "csv") != (f.dialect is not None) or (f.format == "npy" and len(f.arrays) != 1):
            raise damaged(f"{INDEX} does not say how {f.format} files are stored")
        for array in f.arrays or ():
            check_tensor_name(array.name, limits)
        if f.arrays and len({a.name.casefold() for a in f.arrays}) != len(f.arrays):
            raise damaged(f"{INDEX} names an array twice")
    return index


def announced(index: Index) -> int:
    """Bytes of all arrays and files that are kept as bytes, once restored."""
    return sum((f.size or 0) + sum(math.prod(a.shape) * a.layout().dtype.itemsize for a in f.arrays or ()) for f in index.files)
