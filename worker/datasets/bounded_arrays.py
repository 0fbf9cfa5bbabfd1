"""A floating array whose numbers may each move by so much, as frames of rows.

    frame:  part 1: codes of [n, d] (`worker.datasets.code_blocks`)    part 2: exceptions
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from worker.datasets import bounds, exceptions, parts
from worker.datasets.array_codecs import numbers
from worker.datasets.arrays import SAMPLE, rows_of_a_chunk
from worker.datasets.bounded_columns import Bound, Moved
from worker.datasets.bounds import Grid
from worker.datasets.code_blocks import CodeBlocks, block_rows
from worker.datasets.frames import FrameWriter
from worker.datasets.npy import ArrayFile, Layout
from worker.datasets.refusals import damaged

_WIDEST = 4096
"""Rows of more numbers are taken for one long column."""


def _width(layout: Layout) -> int:
    wide = math.prod(layout.stored[1:])
    return wide if 1 < wide <= _WIDEST else 1


def _blocks(layout: Layout) -> Iterator[tuple[int, int]]:
    """First row and number of rows of each frame."""
    at, total, most = 0, layout.stored[0], rows_of_a_chunk(layout)
    while at < total:
        count = block_rows(at, total - at, most) if _width(layout) > 1 else min(total - at, most)
        yield at, count
        at += count


def grid_of(source: ArrayFile, bound: Bound) -> Grid | None:
    """None where the numbers are no finer than the bound."""
    if not source.layout.nbytes:
        return None
    return bounds.grid_of(numbers(source.some(SAMPLE)).reshape(-1), bound.absolute, bound.relative)


def write(source: ArrayFile, grid: Grid, bound: Bound, out: FrameWriter, progress: Callable[[int], None]) -> tuple[int, Moved]:
    """Returns: the bytes in the file, and how far numbers were moved: every one of them is decoded again from what was written, and compared."""
    layout = source.layout
    coder, decoder = (CodeBlocks(_width(layout), linear=grid.step > 0) for _ in range(2))
    taken, moved = 0, Moved()
    for first, count in _blocks(layout):
        rows = source.read(first, count)
        values = np.ascontiguousarray(numbers(rows)).reshape(-1)
        codes = bounds.codes(values, grid)
        missed = bounds.misses(values, bounds.values_of(codes, grid, values.dtype), bound.absolute, bound.relative)
        codes[missed] = 0
        frame = parts.join([coder.encode(codes.reshape(-1, _width(layout))), exceptions.pack(values, missed)])
        back = _decode(frame, grid, decoder, values.dtype, len(values))
        if bounds.misses(values, back, bound.absolute, bound.relative).any():
            raise ValueError("a number does not come back within its bound")
        moved.see(values, back, int(missed.sum()))
        taken += out.put(frame)
        progress(rows.nbytes)
    return taken, moved


def _decode(frame: bytes, grid: Grid, coder: CodeBlocks, dtype: np.dtype, count: int) -> np.ndarray:
    codes, rest = parts.split(frame, 2)
    values = bounds.values_of(coder.decode(codes, count // coder.width).reshape(-1), grid, dtype)
    exceptions.put(rest, values)
    return values


def read(frames: Iterator[bytes], layout: Layout, grid: Grid) -> Iterator[np.ndarray]:
    """The stored rows, [n, ...] each. Raises: InputRefused: invalid-dataset."""
    plain = numbers(np.empty(0, layout.dtype)) if layout.dtype.kind == "f" and layout.dtype.itemsize <= 8 else None
    if plain is None or plain.ndim != 1 or layout.nbytes == 0:
        raise damaged("an array that is no floating one has a grid")
    decoder = CodeBlocks(_width(layout), linear=grid.step > 0)
    for _, count in _blocks(layout):
        if (frame := next(frames, None)) is None:
            raise damaged("an array has fewer rows than its index says")
        values = _decode(frame, grid, decoder, plain.dtype, count * math.prod(layout.stored[1:]))
        values = values if layout.dtype.isnative else values.byteswap().view(layout.dtype)
        yield values.reshape(count, *layout.stored[1:])
