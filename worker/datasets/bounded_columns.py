"""Floating columns whose numbers may each move by so much, coded together: frames of

    part 1: codes of [n, d] (`worker.datasets.code_blocks`)    then for each column: which are there, and exceptions
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from worker.datasets import bounds, column_numbers, exceptions, parts
from worker.datasets.bounds import Grid
from worker.datasets.code_blocks import CodeBlocks
from worker.datasets.refusals import damaged


@dataclass(frozen=True)
class Bound:
    """How far a number may move: one of the two is set."""

    absolute: float | None = None
    relative: float | None = None


@dataclass
class Moved:
    """How far the numbers of a column were moved, as decoded."""

    largest: float = 0.0
    largest_relative: float = 0.0
    exceptions: int = 0
    values: int = 0

    def see(self, values: np.ndarray, decoded: np.ndarray, missed: int) -> None:
        """Args: values, decoded: [n] of one dtype."""
        a, b = values.astype(np.float64), decoded.astype(np.float64)
        finite = np.isfinite(a)
        with np.errstate(divide="ignore", invalid="ignore"):
            off = np.abs(a - b)[finite]
            share = off / np.abs(a[finite])
        self.largest = max(self.largest, float(off.max(initial=0)))
        self.largest_relative = max(self.largest_relative, float(share[np.isfinite(share)].max(initial=0)))
        self.exceptions += missed
        self.values += len(values)


def encode(columns: list[pa.Array], grids: list[Grid], bound: list[Bound], coder: CodeBlocks, level: int) -> tuple[bytes, list[int]]:
    """Args: columns: floats, [n] each. Returns: a frame, and how many exceptions each column has in it."""
    codes, rest, counts = [], [], []
    for column, grid, b in zip(columns, grids, bound, strict=True):
        there = column_numbers.present(column)
        values = np.where(there, column_numbers.values(column), 0).astype(column_numbers.dtype_of(column.type))
        found = bounds.codes(values, grid)
        missed = bounds.misses(values, bounds.values_of(found, grid, values.dtype), b.absolute, b.relative) & there
        found[missed] = 0
        codes.append(found)
        counts.append(int(missed.sum()))
        rest += [column_numbers.pack_present(there, level), exceptions.pack(values, missed)]
    return parts.join([coder.encode(np.stack(codes, 1)), _many(rest)]), counts


def _many(found: list[bytes]) -> bytes:
    return b"".join(len(p).to_bytes(8, "little") + p for p in found)


def _split(data: bytes, count: int) -> list[bytes]:
    out, at = [], 0
    for _ in range(count):
        length = int.from_bytes(data[at : at + 8], "little")
        if at + 8 + length > len(data):
            raise damaged("a frame of columns ends too early")
        out.append(data[at + 8 : at + 8 + length])
        at += 8 + length
    if at != len(data):
        raise damaged("bytes follow the columns of a frame")
    return out


def decode(data: bytes, kinds: list[pa.DataType], grids: list[Grid], coder: CodeBlocks, count: int) -> list[pa.Array]:
    """Raises: InputRefused: invalid-dataset."""
    head, tail = parts.split(data, 2)
    codes = coder.decode(head, count)
    rest = _split(tail, 2 * len(kinds))
    out = []
    for i, (kind, grid) in enumerate(zip(kinds, grids, strict=True)):
        values = bounds.values_of(codes[:, i], grid, column_numbers.dtype_of(kind))
        there = column_numbers.unpack_present(rest[2 * i], count)
        exceptions.put(rest[2 * i + 1], values)
        out.append(column_numbers.column_of(values if there is None else np.where(there, values, 0).astype(values.dtype), there, kind))
    return out
