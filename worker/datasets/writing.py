"""Writes the files of a data set as they are stored, with a row of the report for every column and array."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from worker.datasets import arrays, bounded_arrays, table_files
from worker.datasets.bounded_columns import Bound, Moved
from worker.datasets.frames import FrameWriter
from worker.datasets.sources import Source

_TEXT = 8 << 20


@dataclass
class Asked:
    """How a file is to be written. Args: bounds: by the name of an array, or the position of a column."""

    level: int
    numbers: bool
    bounds: dict = field(default_factory=dict)


def write(source: Source, folder: Path, stem: str, asked: Asked, progress: Callable[[int], None]) -> tuple[dict, list[dict]]:
    """Returns: the entry of the index, and rows of the report."""
    entry = {"path": source.name, "format": source.format, "stem": stem}
    if source.arrays or source.format in ("npy", "npz"):
        stored, rows = _arrays(source, folder / f"{stem}.arrays", asked, progress)
        return entry | {"arrays": stored, "stored": source.stored}, rows
    if source.table is not None:
        written = table_files.write(source.table, folder / stem, asked.level, asked.numbers, asked.bounds, progress)
        dialect = {"dialect": source.dialect.stored()} if source.dialect else {}
        return entry | {"table": written.stored} | dialect, _rows_of_table(source, written, asked)
    size = source.path.stat().st_size
    with contextlib.closing(FrameWriter(folder / f"{stem}.bytes")) as out, source.path.open("rb") as f:
        while piece := f.read(_TEXT):
            out.put(arrays.pack("zstd", np.frombuffer(piece, "u1"), max(asked.level, 12)))
            progress(len(piece))
    row = {"name": source.name, "action": "encoded", "type": source.format, "bytes_before": size, "bytes_after": out.size, "reason": source.reason}
    return entry | {"size": size}, [row]


def _arrays(source: Source, path: Path, asked: Asked, progress) -> tuple[list[dict], list[dict]]:
    stored, rows = [], []
    with contextlib.closing(FrameWriter(path)) as out:
        for name, array in source.arrays.items():
            layout = array.layout
            entry = {"name": name, "descr": repr(layout.descr), "fortran": layout.fortran, "shape": list(layout.shape)}
            row = {"name": f"{source.name}/{name}", "action": "encoded", "type": str(layout.dtype), "shape": list(layout.shape), "bytes_before": layout.nbytes}
            bound = asked.bounds.get(name)
            grid = bounded_arrays.grid_of(array, bound) if bound else None
            if grid:
                taken, moved = bounded_arrays.write(array, grid, bound, out, progress)
                entry["grid"] = {"step": grid.step, "ratio": grid.ratio}
                row |= {"action": "quantized", "bytes_after": taken} | _moved(bound, moved)
            else:
                written = arrays.write(array, out, asked.level, progress)
                row |= {"bytes_after": written["bytes"], "coding": written["codec"], "tried": written["tried"]}
                row |= {"reason": "its numbers are no finer than the bound, so nothing is moved"} if bound else {}
            stored.append(entry)
            rows.append(row)
    return stored, rows


def _moved(bound: Bound, moved: Moved) -> dict:
    asked = {"max_abs_error": bound.absolute} if bound.absolute is not None else {"max_rel_error": bound.relative}
    return asked | {"abs_error": moved.largest, "rel_error": moved.largest_relative, "values_checked": moved.values, "exceptions": moved.exceptions}


def _rows_of_table(source: Source, written: table_files.Written, asked: Asked) -> list[dict]:
    rows, schema, widths = [], source.table.schema, written.widths
    for i, (field_, way, taken) in enumerate(zip(schema, written.ways, written.bytes, strict=True)):
        coding = " ".join(sorted({e for e in way.encodings.values() if e})).lower() if way.kind == "parquet" else {"numbers": "pcodec", "arrow": "arrow stream", "bounded": "codes"}[way.kind]
        row = {"name": f"{source.name}/{field_.name}", "action": "encoded", "type": str(field_.type), "rows": source.table.rows, "bytes_before": widths[i], "bytes_after": taken, "coding": coding, "tried": way.tried}
        if i in written.moved:
            row |= {"action": "quantized"} | _moved(asked.bounds[i], written.moved[i])
        elif i in asked.bounds:
            row["reason"] = "its numbers are no finer than the bound, so nothing is moved"
        rows.append(row)
    return rows

