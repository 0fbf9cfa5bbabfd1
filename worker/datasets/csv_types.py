"""Types of columns whose text follows from the values: whole numbers, decimals of one length, floats as Python writes them, dates and times. All else stays text."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from worker.datasets.tables import Table

_DIGITS = 15
_FIRST = 200


def candidates(column: pa.Array) -> list[pa.DataType]:
    """The types that the text of a first part of a column may have, the narrowest first."""
    text = _present(column)
    lengths = pc.unique(pc.subtract(pc.binary_length(text), pc.add(pc.find_substring(text, "."), 1))) if len(text) else pa.array([], pa.int32())
    places = lengths[0].as_py() if len(lengths) == 1 else 0
    decimals = [pa.decimal128(18, places)] if 0 < places <= _DIGITS and pc.all(pc.greater_equal(pc.find_substring(text, "."), 0)).as_py() else []
    return [pa.int64(), *decimals, pa.float64(), pa.date32(), pa.timestamp("s"), pa.timestamp("ms"), pa.timestamp("us")]


def _present(column: pa.Array) -> pa.Array:
    return column.filter(pc.not_equal(column, ""))


def holds(column: pa.Array, kind: pa.DataType) -> bool:
    """Whether the text of a column is what its values of that type are written as; empty text is null."""
    text = _present(column)
    try:
        return written(text.cast(kind)).equals(text)
    except pa.ArrowException:
        return False


def written(column: pa.Array) -> pa.Array:
    """The text of values; that of nulls is empty. Floats as Python's repr has them, so that they come back exactly."""
    if pa.types.is_string(column.type):
        return column
    if pa.types.is_floating(column.type):
        return pa.array([repr(v) for v in column.fill_null(0.0).to_pylist()], pa.string()) if not column.null_count else pa.array(["" if v is None else repr(v) for v in column.to_pylist()], pa.string())
    return pc.fill_null(column.cast(pa.string()), "")


def kinds(table: Table) -> list[pa.DataType]:
    """The narrowest type of each column that holds in all rows: guessed from the first of them, then held against all; one that fails makes way for the next."""
    left: list[list[pa.DataType] | None] = [None] * len(table.schema)
    open_ = set(range(len(left)))
    while open_:
        failed = set()
        for batch in table.batches():
            for i in open_:
                column = batch.column(i)
                if left[i] is None and len(some := _present(column)[:_FIRST]):
                    left[i] = [k for k in candidates(some) if holds(some, k)]
                while left[i] and not holds(column, left[i][0]):
                    left[i].pop(0)
                    failed.add(i)
        open_ = {i for i in failed if left[i]}
    return [k[0] if k else pa.string() for k in left]


def typed(texts: Table, kinds: list[pa.DataType]) -> Table:
    """The same rows as values; empty text is null where a column is no text."""
    schema = pa.schema([(f.name, k) for f, k in zip(texts.schema, kinds, strict=True)])

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in texts.batches():
            columns = [c if pa.types.is_string(k) else pc.if_else(pc.equal(c, ""), None, c).cast(k) for c, k in zip(batch.columns, kinds, strict=True)]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

    return Table(schema, texts.rows, batches)
