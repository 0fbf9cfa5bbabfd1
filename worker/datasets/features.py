"""The numbers of rows as one matrix, and their labels."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa

from app.errors import InputRefused
from app.limits import shown
from worker.datasets import rows
from worker.datasets.array_codecs import numbers
from worker.datasets.sources import Source

_CLASSES = 1000


def fits(source: Source, name: str, total: int) -> bool:
    """Whether a column or array has a number, or several, for each row."""
    if source.table is not None:
        i = source.table.schema.get_field_index(name)
        kind = source.table.schema.field(i).type if i >= 0 else pa.null()
        return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    layout = source.arrays[name].layout
    return layout.shape[:1] == (total,) and layout.dtype.kind in "biuf"


def matrix(source: Source, names: list[str] | None, without: str | None, total: int, pointer: str) -> np.ndarray:
    """float32 [total, D]: what is named, else all that has numbers.

    Raises:
        InputRefused: not-selectable, where something has no numbers for each row, or nulls, NaN or infinities; limit-materialised.
    """
    chosen = names or [n for n in rows.names(source) if n != without and fits(source, n, total)]
    for i, name in enumerate(chosen):
        if name not in rows.names(source) or not fits(source, name, total):
            raise InputRefused("not-selectable", f"{shown(name)} has no numbers for each of the {total} rows of {shown(source.name)}", pointer=f"{pointer}/{i}")
    if not chosen:
        raise InputRefused("not-selectable", f"{shown(source.name)} has no numbers to go by; name columns or arrays that do", pointer=pointer)
    widths = [1 if source.table is not None else math.prod(source.arrays[n].layout.shape[1:]) for n in chosen]
    rows.check_memory(4 * total * sum(widths), source.name)
    out = np.empty((total, sum(widths)), np.float32)
    if source.table is not None:
        _of_table(source, chosen, out)
    else:
        at = 0
        for name, width in zip(chosen, widths, strict=True):
            _of_array(source, name, out[:, at : at + width])
            at += width
    if not np.isfinite(out).all():
        raise InputRefused("not-selectable", f"{shown(source.name)} has nulls, NaN, or numbers beyond float32 in {', '.join(map(shown, chosen[:5]))}: rows cannot be compared by them", pointer=pointer)
    return out


def _of_table(source: Source, chosen: list[str], out: np.ndarray) -> None:
    at = 0
    for batch in source.table.batches():
        for j, name in enumerate(chosen):
            out[at : at + len(batch), j] = batch.column(batch.schema.get_field_index(name)).cast(pa.float64()).fill_null(float("nan")).to_numpy(zero_copy_only=False)
        at += len(batch)


def _of_array(source: Source, name: str, out: np.ndarray) -> None:
    array = source.arrays[name]
    if array.layout.fortran:
        rows.check_memory(array.layout.nbytes, name)
        out[:] = array.whole().reshape(len(out), -1)
        return
    each, at = max(1, (16 << 20) // max(1, array.layout.row_bytes)), 0
    for part in array.rows(each):
        out[at : at + len(part)] = numbers(part).reshape(len(part), -1)
        at += len(part)


def labels(source: Source, name: str, total: int, pointer: str) -> tuple[np.ndarray, list[str]]:
    """The number of each row's class, int64 [total], and what the classes are called.

    Raises:
        InputRefused: not-selectable, where it is no column of classes.
    """

    def refuse(why: str):
        raise InputRefused("not-selectable", f"{shown(name)} of {shown(source.name)} {why}", pointer=pointer)

    if source.table is not None:
        i = source.table.schema.get_field_index(name)
        if i < 0:
            refuse("is the name of several columns")
        kind = source.table.schema.field(i).type
        if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_boolean(kind) or pa.types.is_dictionary(kind)):
            refuse(f"is of type {kind}; labels are whole numbers or text")
        if nulls := sum(batch.column(i).null_count for batch in source.table.batches()):
            refuse(f"has {nulls} nulls among {total} rows, and every row needs a label")
        values = np.array([v for batch in source.table.batches() for v in map(str, batch.column(i).to_pylist())])
    else:
        layout = source.arrays[name].layout
        if layout.dtype.kind not in "biuUS" or math.prod(layout.shape) != layout.shape[0]:
            refuse(f"is {layout.dtype} {list(layout.shape)}; labels are one whole number or text for each row")
        values = source.arrays[name].whole().reshape(-1)
    found, numbered = np.unique(values, return_inverse=True)
    if not 1 < len(found) <= _CLASSES:
        refuse(f"has {len(found)} classes among {total} rows; 2 to {_CLASSES} are taken")
    return numbered.astype(np.int64), [str(v) for v in found.tolist()]
