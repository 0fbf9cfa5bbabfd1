"""A table as up to four files beside one another, row group by row group.

    NAME.parquet   the columns that parquet makes smallest: any reader of parquet opens it
    NAME.numbers   frames: for each row group, one for each column that pcodec makes smaller
    NAME.bounded   frames: for each row group, the columns that may be moved (`worker.datasets.bounded_columns`)
    NAME.arrow     an Arrow stream, Zstandard: columns of which parquet does not give the same back

What is written is read again and compared, types and bits; a column that does not come back moves to the Arrow stream.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from app.errors import AccountingMismatch
from worker.datasets import bounded_columns, bounds, column_numbers
from worker.datasets.bounded_columns import Bound, Moved
from worker.datasets.bounds import Grid
from worker.datasets.code_blocks import CodeBlocks
from worker.datasets.frames import FrameWriter, read_frames
from worker.datasets.refusals import damaged
from worker.datasets.same import same
from worker.datasets.tables import BATCH, Table, regrouped
from worker.datasets.trials import Way, choose, options, whole
from worker.datasets.unions import with_buffers

WAYS = ("parquet", "numbers", "bounded", "arrow")
_SAMPLE = 1 << 16  # rows
_MOST_FRAME = 16 * BATCH


@dataclass(frozen=True)
class Written:
    """Args: stored: for the index. ways: of each column. widths, bytes: of each column in memory, and in the files (about, where several share a frame). moved: by column, of those that were."""

    stored: dict
    ways: list[Way]
    widths: list[int]
    bytes: list[int]
    moved: dict[int, Moved]


def write(table: Table, stem: Path, level: int, numbers: bool, allowed: Mapping[int, Bound], progress: Callable[[int], None]) -> Written:
    """Args:
        stem: of the files, without their endings.
        numbers: whether columns may leave the parquet file.
        allowed: by column, how far its numbers may be moved.
        progress: told of the bytes of rows, as they are written and as they are compared.
    """
    sample = next(regrouped(table.batches(), table.schema), None)
    columns = [sample.column(i).slice(0, _SAMPLE) if sample else _without_rows(f.type) for i, f in enumerate(table.schema)]
    grids = {i: g for i, b in allowed.items() if (g := _grid(sample.column(i) if sample else columns[i], b))}
    ways = [Way("bounded") if i in grids else Way("arrow") if c is None else choose(c, table.schema.field(i), level, numbers) for i, c in enumerate(columns)]
    _part_clashes(ways)
    while True:
        stored, widths, sizes, moved, wrong = _attempt(table, stem, level, ways, grids, allowed, progress)
        if wrong is None:
            return Written(stored, ways, widths, sizes, moved)
        if ways[wrong].kind == "arrow":
            raise AccountingMismatch(f"column {table.schema.field(wrong).name!r} of type {table.schema.field(wrong).type} does not come back as it was")
        grids.pop(wrong, None)
        ways[wrong] = Way("arrow", tried=ways[wrong].tried)


def _without_rows(kind: pa.DataType) -> pa.Array | None:
    """None where arrow makes no such array (unions)."""
    try:
        return pa.array([], kind)
    except pa.ArrowNotImplementedError:
        return None


def _grid(column: pa.Array, bound: Bound) -> Grid | None:
    values = np.ascontiguousarray(column_numbers.values(column)[column_numbers.present(column)])
    return bounds.grid_of(values, bound.absolute, bound.relative) if len(values) else None


def _part_clashes(ways: list[Way]) -> None:
    """Parquet names leaves by their paths: where two columns have the same, the later one goes elsewhere."""
    seen: set[str] = set()
    for way in ways:
        if way.kind == "parquet":
            if not seen.isdisjoint(way.encodings):
                way.kind = "arrow"
            else:
                seen.update(way.encodings)


def _attempt(table, stem: Path, level: int, ways: list[Way], grids: dict[int, Grid], allowed: Mapping[int, Bound], progress) -> tuple[dict, list[int], list[int], dict, int | None]:
    of = {kind: [i for i, way in enumerate(ways) if way.kind == kind] for kind in WAYS}
    paths = {kind: stem.with_name(f"{stem.name}.{kind}") for kind in WAYS if of[kind]}
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
    widths, sizes, groups = [0] * len(ways), [0] * len(ways), []
    parts = {kind: pa.schema([table.schema.field(i) for i in of[kind]], metadata=table.schema.metadata) for kind in WAYS}
    coder = CodeBlocks(len(of["bounded"]), linear=all(grids[i].step for i in of["bounded"]))
    moved = {i: Moved() for i in of["bounded"]}
    with contextlib.ExitStack() as stack:
        parquet = stack.enter_context(pq.ParquetWriter(str(paths["parquet"]), parts["parquet"], **options({k: v for i in of["parquet"] for k, v in ways[i].encodings.items()}, level))) if of["parquet"] else None
        stream = stack.enter_context(pa.ipc.new_stream(str(paths["arrow"]), parts["arrow"], options=pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False))) if of["arrow"] else None
        frames = {kind: stack.enter_context(contextlib.closing(FrameWriter(paths[kind]))) for kind in ("numbers", "bounded") if of[kind]}
        for batch in regrouped(table.batches(), table.schema):
            groups.append(len(batch))
            widths = [n + c.nbytes for n, c in zip(widths, batch.columns, strict=True)]
            if parquet:
                parquet.write_table(pa.Table.from_arrays([batch.column(i) for i in of["parquet"]], schema=parts["parquet"]), row_group_size=len(batch))
            if stream:
                stream.write_batch(pa.RecordBatch.from_arrays([batch.column(i) for i in of["arrow"]], schema=parts["arrow"]))
            for i in of["numbers"]:
                sizes[i] += frames["numbers"].put(column_numbers.encode(batch.column(i), level))
            if of["bounded"]:
                frame, counts = bounded_columns.encode([batch.column(i) for i in of["bounded"]], [grids[i] for i in of["bounded"]], [allowed[i] for i in of["bounded"]], coder, level)
                taken = frames["bounded"].put(frame)
                for i, missed in zip(of["bounded"], counts, strict=True):
                    sizes[i] += taken // len(of["bounded"])
                    moved[i].exceptions += missed
            progress(batch.nbytes)
    stored = {
        "schema": base64.b64encode(table.schema.serialize()).decode(), "ways": [way.kind for way in ways], "groups": groups,
        "grids": [{"step": grids[i].step, "ratio": grids[i].ratio} for i in of["bounded"]],
    }  # fmt: skip
    _sizes_of_parquet(paths.get("parquet"), of["parquet"], sizes)
    for i in of["arrow"]:
        sizes[i] = paths["arrow"].stat().st_size // len(of["arrow"])
    wrong = _compare(table, stored, stem, moved, allowed, progress)
    return stored, widths, sizes, moved, wrong


def _sizes_of_parquet(path: Path | None, columns: list[int], sizes: list[int]) -> None:
    if path is None:
        return
    metadata = pq.read_metadata(path)
    names = {name: i for i, name in enumerate(metadata.schema.to_arrow_schema().names)}
    owners = [columns[_owner(names, metadata.schema.column(i).path)] for i in range(metadata.num_columns)]
    for g in range(metadata.num_row_groups):
        group = metadata.row_group(g)
        for i, owner in enumerate(owners):
            sizes[owner] += group.column(i).total_compressed_size


def _owner(names: dict[str, int], path: str) -> int:
    """The position of the column that a leaf is of: the one of the longest name that its path begins with, up to a dot or as a whole."""
    while path and path not in names:
        path = path.rpartition(".")[0]
    return names[path]


def _compare(table: Table, stored: dict, stem: Path, moved: dict[int, Moved], allowed: Mapping[int, Bound], progress) -> int | None:
    """The first column that did not come back as it may be; `moved` learns how far the others were."""
    for a, b in zip(regrouped(table.batches(), table.schema), read(stored, stem), strict=True):
        for i in range(len(table.schema)):
            if i not in moved:
                if not same(a.column(i), b.column(i)):
                    return i
                continue
            there = column_numbers.present(a.column(i))
            before, after = column_numbers.values(a.column(i))[there], column_numbers.values(b.column(i))[there]
            if not (there == column_numbers.present(b.column(i))).all() or bounds.misses(before, after, allowed[i].absolute, allowed[i].relative).any():
                return i
            moved[i].see(before, after, 0)
        progress(a.nbytes)
    return None


def read(stored: dict, stem: Path) -> Iterator[pa.RecordBatch]:
    """The row groups of a table that `write` has stored.

    Raises:
        InputRefused: invalid-dataset.
    """
    schema, ways, groups = schema_of(stored["schema"]), stored["ways"], stored["groups"]
    of = {kind: [i for i, way in enumerate(ways) if way == kind] for kind in WAYS}
    paths = {kind: stem.with_name(f"{stem.name}.{kind}") for kind in WAYS if of[kind]}
    if len(ways) != len(schema) or len(stored["grids"]) != len(of["bounded"]):
        raise damaged("the ways of a table's columns do not fit its schema")
    grids = [Grid(g["step"], g["ratio"]) for g in stored["grids"]]
    coder = CodeBlocks(len(of["bounded"]), linear=all(g.step for g in grids))
    kinds = [schema.field(i).type for i in of["bounded"]]
    if any(not pa.types.is_floating(k) for k in kinds) or any(not column_numbers.fits(schema.field(i).type) for i in of["numbers"]):
        raise damaged("a column is coded as numbers that it has none of")
    try:
        with contextlib.ExitStack() as stack:
            parquet = stack.enter_context(pq.ParquetFile(paths["parquet"])) if of["parquet"] else None
            if parquet and [parquet.metadata.row_group(i).num_rows for i in range(parquet.metadata.num_row_groups)] != groups:
                raise damaged("the parquet file has other row groups than its index says")
            stream = stack.enter_context(pa.ipc.open_stream(stack.enter_context(pa.OSFile(str(paths["arrow"]))))) if of["arrow"] else None
            frames = {kind: read_frames(paths[kind], _MOST_FRAME) for kind in ("numbers", "bounded") if of[kind]}
            for g, count in enumerate(groups):
                columns: list[pa.Array | None] = [None] * len(ways)
                if parquet:
                    found = parquet.read_row_group(g, use_threads=False)
                    for i, column in zip(of["parquet"], found.columns, strict=True):
                        columns[i] = whole(column)
                if stream:
                    (batch := stream.read_next_batch()).validate(full=True)
                    for i, column in zip(of["arrow"], with_buffers(batch).columns, strict=True):
                        columns[i] = column
                for i in of["numbers"]:
                    columns[i] = column_numbers.decode(_next(frames["numbers"]), schema.field(i).type, count)
                if of["bounded"]:
                    for i, column in zip(of["bounded"], bounded_columns.decode(_next(frames["bounded"]), kinds, grids, coder, count), strict=True):
                        columns[i] = column
                if any(len(c) != count or c.type != f.type for c, f in zip(columns, schema, strict=True)):
                    raise damaged("a row group has another length, or a column another type, than the index says")
                yield pa.RecordBatch.from_arrays(columns, schema=schema)
    except (pa.ArrowException, FileNotFoundError, StopIteration, ValueError, UnicodeDecodeError) as e:
        if isinstance(e, MemoryError):
            raise
        raise damaged(f"the table cannot be read: {str(e)[:200]}") from None


def schema_of(text: str) -> pa.Schema:
    """Raises: InputRefused: invalid-dataset."""
    try:
        return pa.ipc.read_schema(pa.BufferReader(base64.b64decode(text, validate=True)))
    except (pa.ArrowException, ValueError, OSError) as e:
        raise damaged(f"the schema of a table cannot be read: {str(e)[:200]}") from None


def _next(frames: Iterator[bytes]) -> bytes:
    if (frame := next(frames, None)) is None:
        raise damaged("a table has fewer frames than its index says")
    return frame
