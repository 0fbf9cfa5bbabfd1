"""Keeps the first of rows that are equal, or that are near to one another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from app.errors import InputRefused
from app.limits import shown
from app.steps.dataset import Dedup
from worker.datasets import column_numbers, features, rows
from worker.datasets.near import near
from worker.datasets.sources import Source
from worker.progress import Emit, Progress

_CHUNK = 8 << 20
_LISTED = 10_000
"""Pairs that the report has; how many there are it says."""
MOST_NEAR = 200_000
"""Rows that are held against one another."""


def fitting(sources: list[Source], step: Dedup, pointer: str) -> list[Source]:
    """The files that the step is about. Raises: InputRefused: not-selectable, where none has what it names."""
    found = [s for s in sources if rows.names(s) and (not step.by or set(step.by) <= set(rows.names(s)))]
    if not found:
        some = ", ".join(shown(n) for s in sources for n in rows.names(s)[:5])
        raise InputRefused("not-selectable", f"no file has all of {', '.join(map(shown, step.by or ['rows']))}; there are {some}", pointer=f"{pointer}/by" if step.by else pointer)
    return found


def choose(source: Source, step: Dedup, pointer: str, seed: int, emit: Emit) -> tuple[np.ndarray, int, dict]:
    """Positions of the rows to keep, how many there were, and for the report `dropped`, `duplicates` [[row, the row that it is like], ...] and, of near ones, their distances."""
    total = rows.count(source, step.by)
    progress = Progress(emit, "compress", total)
    if step.distance is not None:
        if total > MOST_NEAR:
            raise InputRefused("limit-entries", f"{shown(source.name)} has {total} rows; distances are measured among at most {MOST_NEAR}", pointer=f"{pointer}/distance")
        x = features.matrix(source, step.by, None, total, f"{pointer}/by")
        kept, pairs, distances = near(x, step.distance, step.metric or "euclidean", progress.add)
        told = {"distances": [round(d, 9) for d in distances[:_LISTED]], "distance": step.distance, "metric": step.metric or "euclidean"}
    else:
        kept, pairs = first_of_equal(_digests(source, step.by, total, progress), total)
        told = {}
    return kept, total, {"dropped": len(pairs), "duplicates": pairs[:_LISTED]} | told


def first_of_equal(digests: np.ndarray, total: int) -> tuple[np.ndarray, list[list[int]]]:
    """Positions of the first rows, in order, and pairs of every other row with the first like it. Args: digests: 16 bytes each, [total]."""
    _, first, which = np.unique(digests, return_index=True, return_inverse=True)
    like = first[which]
    others = np.flatnonzero(like != np.arange(total))
    return np.sort(first), np.stack([others, like[others]], 1).tolist()


def _digests(source: Source, by: list[str] | None, total: int, progress: Progress) -> np.ndarray:
    out = np.empty(total, "V16")
    at = 0
    for part in _bytes_of_table(source, by) if source.table is not None else _bytes_of_arrays(source, by, total):
        data, width = part.tobytes(), part.shape[1]
        out[at : at + len(part)] = np.frombuffer(b"".join(hashlib.blake2b(data[i : i + width], digest_size=16).digest() for i in range(0, len(data), width)), "V16") if width else b"\0" * 16
        at += len(part)
        progress.add(len(part))
    return out


def _bytes_of_arrays(source: Source, by: list[str] | None, total: int) -> Iterator[np.ndarray]:
    """uint8 [n, bytes of a row]."""
    chosen = [a for n, a in source.arrays.items() if a.layout.shape[:1] == (total,) and (not by or n in by)]
    whole = {id(a): np.ascontiguousarray(a.whole()) for a in chosen if a.layout.fortran and rows.check_memory(a.layout.nbytes, source.name) is None}
    each = max(1, _CHUNK // max(1, sum(a.layout.nbytes // max(1, total) for a in chosen)))
    for at in range(0, total, each):
        count = min(each, total - at)
        parts = [(whole[id(a)][at : at + count] if a.layout.fortran else a.read(at, count)) for a in chosen]
        yield np.concatenate([np.frombuffer(p.tobytes(), "u1").reshape(count, -1) for p in parts], 1)


def _bytes_of_table(source: Source, by: list[str] | None) -> Iterator[np.ndarray]:
    """uint8 [n, 17 for each column]: the bits of numbers, of all else a digest; and whether it is null."""
    chosen = [i for i, n in enumerate(source.table.schema.names) if not by or n in by]
    for batch in source.table.batches():
        yield np.concatenate([_bytes_of(batch.column(i)) for i in chosen], 1)


def _bytes_of(column: pa.Array) -> np.ndarray:
    there = column_numbers.present(column)
    out = np.zeros((len(column), 17), "u1")
    out[:, 16] = there
    if column_numbers.fits(column.type):
        values = np.ascontiguousarray(column_numbers.values(column))
        raw = values.view("u1").reshape(len(values), -1)
        out[:, : raw.shape[1]] = np.where(there[:, None], raw, 0)
        return out
    distinct: dict[object, bytes] = {}
    for i, value in enumerate(column.to_pylist()):
        key = value if isinstance(value, (str, bytes)) else repr(value)
        if key not in distinct:
            distinct[key] = hashlib.blake2b(key if isinstance(key, bytes) else b"\1" + key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        out[i, :16] = np.frombuffer(distinct[key], "u1")
    return out
