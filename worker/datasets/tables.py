"""A table that is read again and again, a few rows at a time, whatever file it comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from app.errors import InputRefused
from app.limits import Limits, shown
from worker.datasets.refusals import invalid_table
from worker.datasets.unions import with_buffers

BATCH = 16 << 20
"""Bytes of rows that are in memory at once, about; a job takes a few times as much."""
_VALUES_PER_BYTE = 100
_FEW = 1 << 28
_COLUMNS = 20_000

pa.set_memory_pool(pa.system_memory_pool())  # others reserve addresses, which the jail counts


@dataclass(frozen=True)
class Table:
    """Args: batches: starts from the first row each time that it is called; no batch is much larger than BATCH."""

    schema: pa.Schema
    rows: int
    batches: Callable[[], Iterator[pa.RecordBatch]]


def open_parquet(path: Path, name: str, limits: Limits = Limits()) -> Table:
    """Raises: InputRefused: invalid-table, limit-expand, limit-entries."""
    try:
        with pq.ParquetFile(path) as f:
            schema, metadata = f.schema_arrow, f.metadata
            rows, leaves, size = metadata.num_rows, metadata.num_columns, path.stat().st_size
            groups = [(metadata.row_group(i).num_rows, metadata.row_group(i).total_byte_size) for i in range(metadata.num_row_groups)]
    except (pa.ArrowException, OSError, UnicodeDecodeError, ValueError) as e:
        raise invalid_table(f"{shown(name)} is no parquet file that can be read: {shown(str(e))}") from None
    check_width(schema, name)
    if sum(n for n, _ in groups) != rows or any(n < 0 for n, _ in groups):
        raise invalid_table(f"{shown(name)} announces {rows} rows and has others in its row groups")
    _check_values(rows, leaves, size, name)
    width = max(1, sum(b for _, b in groups) // max(rows, 1))

    def batches() -> Iterator[pa.RecordBatch]:
        got = 0
        with reading(name), pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as f:
            for batch in f.iter_batches(batch_size=_count(width), use_threads=False):
                got += len(batch)
                yield pa.RecordBatch.from_arrays(batch.columns, schema=schema)
        if got != rows:
            raise invalid_table(f"{shown(name)} announces {rows} rows and has {got}")

    return Table(schema, rows, batches)


def open_arrow(path: Path, name: str) -> Table:
    """The file format of Arrow IPC, which Feather version 2 is.

    Raises:
        InputRefused: invalid-table, limit-entries, limit-expand.
    """
    with path.open("rb") as f:
        if f.read(4) == b"FEA1":
            raise invalid_table(f"{shown(name)} is Feather of version 1, which is not read; write version 2")
        f.seek(0)
        if f.read(4) == b"\xff\xff\xff\xff":
            raise invalid_table(f"{shown(name)} is an Arrow stream, which is not read; write it as an Arrow file")
    with reading(name), pa.OSFile(str(path)) as source:
        reader = pa.ipc.open_file(source)
        schema, count = reader.schema, reader.num_record_batches
        check_width(schema, name)
        rows = 0
        for i in range(count):
            batch = reader.get_batch(i)
            rows += len(batch)
            _check_values(rows, len(schema), path.stat().st_size, name)  # nulls take no byte
            batch.validate(full=True)

    def batches() -> Iterator[pa.RecordBatch]:
        with reading(name), pa.OSFile(str(path)) as source:
            reader = pa.ipc.open_file(source)
            for i in range(count):
                batch = with_buffers(reader.get_batch(i))
                each = _count(max(1, batch.nbytes // max(len(batch), 1)))
                for at in range(0, len(batch), each):
                    yield batch.slice(at, each)

    return Table(schema, rows, batches)


def _count(width: int) -> int:
    return max(1, min(1 << 20, BATCH // width))


def _check_values(rows: int, columns: int, size: int, name: str) -> None:
    if rows * max(columns, 1) > max(_FEW, _VALUES_PER_BYTE * size):
        raise InputRefused("limit-expand", f"{shown(name)} of {size} bytes announces {rows} rows of {columns} columns; at most {_VALUES_PER_BYTE} values a byte are taken")


def check_width(schema: pa.Schema, name: str) -> None:
    if not 0 < len(schema) <= _COLUMNS:
        raise InputRefused("limit-entries", f"{shown(name)} has {len(schema)} columns; 1 to {_COLUMNS} are taken")


class reading:
    """What arrow says of a bad file becomes a refusal; that memory has run out stays so."""

    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind, error, trace) -> None:
        if isinstance(error, (pa.ArrowException, OSError, UnicodeDecodeError)) and not isinstance(error, MemoryError) and getattr(error, "errno", None) is None:
            raise invalid_table(f"{shown(self.name)} cannot be read: {shown(str(error))}") from None


def regrouped(batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of about BATCH bytes."""
    held: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        if not len(batch):
            continue
        held.append(batch)
        size += batch.get_total_buffer_size() if len(held) == 1 else batch.nbytes
        if size >= BATCH // 2:
            yield _one(held, schema)
            held, size = [], 0
    if held:
        yield _one(held, schema)


def _one(held: list[pa.RecordBatch], schema: pa.Schema) -> pa.RecordBatch:
    if len(held) == 1:
        return held[0]
    return pa.RecordBatch.from_arrays([_joined([b.column(i) for b in held]) for i in range(len(schema))], schema=schema)


def _joined(parts: list[pa.Array]) -> pa.Array:
    return pa.chunked_array(parts).unify_dictionaries().combine_chunks()


def selected(table: Table, kept: np.ndarray | None, columns: list[int]) -> Table:
    """Some rows (positions in rising order; None for all) and columns of a table."""
    schema = pa.schema([table.schema.field(i) for i in columns], metadata=table.schema.metadata)

    def batches() -> Iterator[pa.RecordBatch]:
        start = 0
        for batch in table.batches():
            part = batch.select(columns) if len(set(table.schema.names)) == len(table.schema) else pa.RecordBatch.from_arrays([batch.column(i) for i in columns], schema=schema)
            if kept is not None:
                lower, upper = np.searchsorted(kept, [start, start + len(batch)])
                part = part.take(pa.array(kept[lower:upper] - start))
            start += len(batch)
            yield pa.RecordBatch.from_arrays(part.columns, schema=schema)

    return Table(schema, table.rows if kept is None else len(kept), batches)


def retold(table: Table, schema: pa.Schema) -> Table:
    """The same rows under a schema of the same types, with other metadata."""

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in table.batches():
            yield pa.RecordBatch.from_arrays(batch.columns, schema=schema)

    return Table(schema, table.rows, batches)


def widths(table: Table) -> list[int]:
    """Bytes in memory of each column."""
    found = [0] * len(table.schema)
    for batch in table.batches():
        found = [n + c.nbytes for n, c in zip(found, batch.columns, strict=True)]
    return found
