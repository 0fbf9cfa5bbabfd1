"""Gives the files of a data set back out of what a job has stored.

Arrays come back to the bit (dtype, shape, order), a csv byte for byte, tables of parquet and arrow with their values and schema (the bytes of those files depend on
who writes them), everything else byte for byte.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from app.errors import InputRefused
from worker.datasets import arrays, bounded_arrays, csv_lines, table_files
from worker.datasets.arrays import CHUNK
from worker.datasets.bounds import Grid
from worker.datasets.csv_dialect import Dialect
from worker.datasets.frames import read_frames
from worker.datasets.index import FileEntry, announced, load_index
from worker.datasets.npy import write_header
from worker.datasets.refusals import damaged

_PIECE = 8 << 20
_FRAME = 4 * CHUNK
_EXPANDS, _AT_LEAST = 10_000, 1 << 30
_BYTE = np.dtype("u1")
_EPOCH = (1980, 1, 1, 0, 0, 0)


def restore(folder: Path, out: Path, progress: Callable[[int], None]) -> list[dict]:
    """Write the files into `out`.

    Args:
        folder: with `modelpress.json` at its root.
        progress: told of bytes written, as they are.

    Returns:
        a row for each file: `name`, `action`, `type`, `bytes_before` (0: it is part of the artifact), `bytes_after`, `exact` (bytes, arrays, or values).

    Raises:
        InputRefused: invalid-dataset, limit-expand, and others where the artifact is not as it must be.
    """
    index = load_index(folder)
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    if (total := announced(index)) > max(_AT_LEAST, _EXPANDS * size):
        raise InputRefused("limit-expand", f"the artifact of {size} bytes announces {total}; at most {_EXPANDS} times its size is taken")
    rows = []
    for entry in index.files:
        target = out / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        before = sum(p.stat().st_size for p in (folder / entry.stem).parent.glob("*") if p.name.startswith(Path(entry.stem).name + ".") and p.is_file())
        try:
            _one(folder, entry, target, progress)
        except FileNotFoundError as e:
            raise damaged(f"{Path(e.filename or '').name} is missing") from None
        exact = {"npy": "arrays", "npz": "arrays", "parquet": "values", "arrow": "values"}.get(entry.format, "bytes")
        rows.append({"name": entry.path, "action": "copied", "reason": "restored", "type": entry.format, "bytes_before": before, "bytes_after": target.stat().st_size, "exact": exact})
    return rows


def _one(folder: Path, entry: FileEntry, target: Path, progress: Callable[[int], None]) -> None:
    stem = folder / entry.stem
    match entry.format:
        case "npy" | "npz":
            frames = read_frames(stem.with_name(f"{stem.name}.arrays"), _frame(entry))
            _write_arrays(entry, frames, target, progress)
            if next(frames, None) is not None:
                raise damaged(f"{stem.name}.arrays has more rows than its index says")
        case "text" | "other":
            with target.open("xb") as out:
                for at, frame in zip(range(0, max(entry.size, 1), _PIECE), read_frames(stem.with_name(f"{stem.name}.bytes"), _FRAME), strict=False):
                    out.write(piece := arrays.unpack(frame, _BYTE, (min(_PIECE, entry.size - at),)).tobytes())
                    progress(len(piece))
            if target.stat().st_size != entry.size:
                raise damaged(f"{stem.name}.bytes has another size than its index says")
        case _:
            _write_table(entry, stem, target, progress)


_BYTE = np.dtype("u1")


def _frame(entry: FileEntry) -> int:
    """Bytes that a frame of the arrays may have: a chunk of the widest of them that does not get smaller."""
    return max([_FRAME, *(2 * a.layout().row_bytes + (1 << 20) for a in entry.arrays)])


def _write_arrays(entry: FileEntry, frames: Iterator[bytes], target: Path, progress: Callable[[int], None]) -> None:
    if entry.format == "npy":
        with target.open("xb") as out:
            _write_array(entry.arrays[0], frames, out, progress)
        return
    with zipfile.ZipFile(target, "x", zipfile.ZIP_STORED if entry.stored else zipfile.ZIP_DEFLATED) as made:
        for array in entry.arrays:
            info = zipfile.ZipInfo(f"{array.name}.npy", _EPOCH)
            info.compress_type = made.compression
            with made.open(info, "w", force_zip64=True) as out:
                _write_array(array, frames, out, progress)


def _write_array(array, frames: Iterator[bytes], out, progress: Callable[[int], None]) -> None:
    layout = array.layout()
    write_header(out, layout)
    rows = bounded_arrays.read(frames, layout, Grid(array.grid.step, array.grid.ratio)) if array.grid else arrays.read(frames, layout)
    for part in rows:
        out.write(part.tobytes())
        progress(part.nbytes)


def _write_table(entry: FileEntry, stem: Path, target: Path, progress: Callable[[int], None]) -> None:
    stored = entry.table.model_dump(by_alias=True)
    schema, batches = table_files.schema_of(stored["schema"]), _counted(table_files.read(stored, stem), progress)
    if entry.format == "csv":
        dialect = Dialect(**entry.dialect.model_dump())
        if any(not (pa.types.is_string(f.type) or pa.types.is_integer(f.type) or pa.types.is_floating(f.type) or pa.types.is_decimal(f.type) or pa.types.is_temporal(f.type)) for f in schema):
            raise damaged("a csv file has a column of a type that no csv is read as")
        with target.open("xb") as out:
            for piece in csv_lines.lines(batches, schema, dialect):
                out.write(piece)
        return
    with contextlib.ExitStack() as stack:
        if entry.format == "parquet":
            writer = stack.enter_context(pq.ParquetWriter(str(target), schema, version="2.6", compression="zstd", write_statistics=True))
            for batch in batches:
                writer.write_batch(batch)
        else:
            writer = stack.enter_context(pa.ipc.new_file(str(target), schema, options=pa.ipc.IpcWriteOptions(unify_dictionaries=True)))
            for batch in batches:
                writer.write_batch(batch)


def _counted(batches: Iterator[pa.RecordBatch], progress: Callable[[int], None]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        progress(batch.nbytes)
        yield batch
