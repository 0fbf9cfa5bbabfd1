"""Some rows of a file: of its table, or of all its arrays that have as many rows as were counted."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from app.errors import InputRefused
from app.limits import shown
from worker.datasets.npy import ArrayFile, Layout, write_header
from worker.datasets.sources import Source
from worker.datasets.tables import selected

MOST = 2 << 30
"""Bytes of rows that may be in memory at once, for what has to see all of them."""


def groups(source: Source) -> dict[int, list[str]]:
    """The names of the arrays by their number of rows (the first axis)."""
    found: dict[int, list[str]] = {}
    for name, array in source.arrays.items():
        if array.layout.shape:
            found.setdefault(array.layout.shape[0], []).append(name)
    return found


def names(source: Source) -> list[str]:
    return source.table.schema.names if source.table is not None else list(source.arrays)


def count(source: Source, named: list[str] | None) -> int:
    """How many rows there are: of a table, of the arrays that are named, else of the longest array.

    Raises:
        InputRefused: not-selectable, where the named arrays differ.
    """
    if source.table is not None:
        return source.table.rows
    lengths = {n: source.arrays[n].layout.shape[:1] for n in named or source.arrays}
    if named and (len(set(lengths.values())) > 1 or () in lengths.values()):
        raise InputRefused("not-selectable", f"the arrays {', '.join(shown(n) for n in named[:5])} of {shown(source.name)} have different numbers of rows")
    return max((n[0] for n in lengths.values() if n), default=0)


def select(source: Source, kept: np.ndarray, total: int, scratch: Path) -> list[str]:
    """Leave the rows `kept` (positions in rising order, int64) of `total` in the file.

    Returns:
        the names of what has been cut.
    """
    if source.table is not None:
        source.table = selected(source.table, kept, list(range(len(source.table.schema))))
        return list(source.table.schema.names)
    cut = []
    folder = Path(tempfile.mkdtemp(prefix="rows-", dir=scratch))
    for i, (name, array) in enumerate(source.arrays.items()):
        if array.layout.shape[:1] == (total,):
            source.arrays[name] = _cut(array, kept, folder / f"{i}.npy")
            cut.append(name)
    return cut


def _cut(array: ArrayFile, kept: np.ndarray, path: Path) -> ArrayFile:
    layout = Layout(array.layout.descr, array.layout.fortran, (len(kept), *array.layout.shape[1:]))
    with path.open("xb") as out:
        write_header(out, layout)
        start = out.tell()
        if layout.fortran:
            check_memory(array.layout.nbytes, path.name)
            out.write(np.ascontiguousarray(array.whole()[kept].T).tobytes())
        else:
            each, at = max(1, (16 << 20) // max(1, array.layout.row_bytes)), 0
            for rows in array.rows(each):
                lower, upper = np.searchsorted(kept, [at, at + len(rows)])
                out.write(rows[kept[lower:upper] - at].tobytes())
                at += len(rows)
    return ArrayFile(path, start, layout)


def check_memory(nbytes: int, what: str) -> None:
    """Raises: InputRefused: limit-materialised."""
    if nbytes > MOST:
        raise InputRefused("limit-materialised", f"{shown(what)} takes {nbytes} bytes, and all of them are looked at together; at most {MOST} are taken")
