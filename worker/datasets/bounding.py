"""Which columns and arrays a step `quantize` is about, and how far their numbers may move."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

import pyarrow as pa

from app.errors import InputRefused
from app.limits import shown
from app.steps.dataset import QuantizeNumbers
from worker.datasets import rows
from worker.datasets.bounded_columns import Bound
from worker.datasets.npy import Layout
from worker.datasets.sources import Source
from worker.datasets.tables import Table


def apply(sources: list[Source], step: QuantizeNumbers, asked: dict, pointer: str) -> None:
    """Enter the bounds into `asked`, by the names of files.

    Raises:
        InputRefused: not-quantizable, where a named column has no floating numbers, or none has any.
    """
    bound, found = Bound(step.max_abs_error, step.max_rel_error), 0
    names = {n for s in sources for n in rows.names(s)}
    for i, pattern in enumerate(step.columns or ()):
        if not any(fnmatchcase(n, pattern) for n in names):
            raise InputRefused("not-quantizable", f"no column or array is called {shown(pattern)}; there are {', '.join(map(shown, sorted(names)[:10]))}", pointer=f"{pointer}/columns/{i}")
    for source in sources:
        if source.table is not None:
            _decimals_as_floats(source, step)
        for key, name, what, floating in _fields(source):
            matched = step.columns is None or any(fnmatchcase(name, p) for p in step.columns)
            if matched and floating:
                asked[source.name].bounds[key] = bound
                found += 1
            elif step.columns and name in step.columns:
                raise InputRefused("not-quantizable", f"{shown(name)} of {shown(source.name)} is {what}: an error bound is for floating numbers; reencode codes it exactly", pointer=f"{pointer}/columns/{step.columns.index(name)}")
    if not found:
        some = ", ".join(f"{shown(n)} ({what})" for s in sources for _, n, what, _ in list(_fields(s))[:5])
        raise InputRefused("not-quantizable", f"there are no floating numbers that an error bound could be about: {some}", pointer=f"{pointer}/columns" if step.columns else pointer)


def _fields(source: Source) -> Iterator[tuple[int | str, str, str, bool]]:
    """Key, name, type, and whether it is floating numbers."""
    if source.table is not None:
        for i, f in enumerate(source.table.schema):
            yield i, f.name, str(f.type), pa.types.is_floating(f.type)
    for name, array in source.arrays.items():
        yield name, name, str(array.layout.dtype), _floating(array.layout)


def _floating(layout: Layout) -> bool:
    return layout.dtype.kind == "f" and layout.dtype.itemsize <= 8


def _decimals_as_floats(source: Source, step: QuantizeNumbers) -> None:
    """The decimals of a csv are floating numbers that were written with as many digits."""
    chosen = [
        i for i, f in enumerate(source.table.schema)
        if source.dialect and pa.types.is_decimal(f.type) and (step.columns is None or any(fnmatchcase(f.name, p) for p in step.columns))
    ]  # fmt: skip
    if not chosen:
        return
    table = source.table
    schema = pa.schema([pa.field(f.name, pa.float64()) if i in chosen else f for i, f in enumerate(table.schema)], metadata=table.schema.metadata)

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in table.batches():
            yield pa.RecordBatch.from_arrays([c.cast(pa.float64()) if i in chosen else c for i, c in enumerate(batch.columns)], schema=schema)

    source.table = Table(schema, table.rows, batches)
