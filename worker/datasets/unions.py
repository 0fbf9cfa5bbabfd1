"""Columns that hold unions, made safe to handle."""

from __future__ import annotations

import pyarrow as pa


def with_buffers(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The same rows. Unions without any that were read from a file, wherever in a column they lie, have no buffers, on which arrow crashes (`nbytes`, compression); here they get some."""
    if not any(_has_union(t) for t in batch.schema.types):
        return batch
    every = pa.array(range(len(batch)), pa.int64())
    return pa.RecordBatch.from_arrays([c.take(every) if _has_union(c.type) else c for c in batch.columns], schema=batch.schema)


def _has_union(kind: pa.DataType) -> bool:
    return "_union<" in str(kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind)
