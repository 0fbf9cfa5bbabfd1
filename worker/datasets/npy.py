"""Arrays of a .npy file, a few rows at a time. No pickle is ever read, and no size is believed that the file does not hold.

    \x93NUMPY  major minor  header length: u16 (u32 from 2.0)  header: a dict literal, spaces, newline   data

Source: numpy.lib.format. Row-major data are rows of the first axis; in column-major (`fortran_order`) data, the rows that lie together are those of the
last axis, so that an array is read here as `stored`: its shape in the order of its bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from app.errors import InputRefused
from app.limits import shown
from worker.datasets.refusals import invalid_numpy
from worker.formats.npy_header import MAGIC, parse_header

_HEADER, _RANK, _DEPTH = 1 << 16, 32, 4
_KINDS = "biufcmMSUV"
_ITEM = 1 << 20
"""Bytes that one element may have."""
_EMPTY = 1 << 24
"""An array without elements takes no byte, and whoever goes through its rows takes for ever."""


@dataclass(frozen=True)
class Layout:
    """What a header tells: `descr` as it stands there (a string, or a list of fields), and of which `dtype` it is."""

    descr: Any
    fortran: bool
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        return dtype_of(self.descr)

    @property
    def stored(self) -> tuple[int, ...]:
        """The shape in the order of the bytes, at least one axis."""
        return (self.shape[::-1] if self.fortran else self.shape) or (1,)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def row_bytes(self) -> int:
        return math.prod(self.stored[1:]) * self.dtype.itemsize


def dtype_of(descr: Any, depth: int = 0) -> np.dtype:
    """A dtype out of a stranger's description: numbers, dates, text and bytes of a fixed size, and records of these.

    Raises:
        InputRefused: unsafe-pickle of objects, invalid-numpy of anything else.
    """
    if isinstance(descr, str):
        if len(descr) > 64:
            raise invalid_numpy(f"dtype {shown(descr)} is none")
        if "O" in descr.lstrip("<>|="):
            raise InputRefused("unsafe-pickle", "an array of Python objects is a pickle, which is never read here; store numbers or text instead")
        try:
            dtype = np.dtype(descr)
        except (TypeError, ValueError, SyntaxError, OverflowError):
            raise invalid_numpy(f"dtype {shown(descr)} is none that numpy knows") from None
        if dtype.kind not in _KINDS or dtype.hasobject or dtype.subdtype or dtype.fields:
            raise invalid_numpy(f"dtype {shown(descr)} is not taken; numbers, dates, text and bytes are")
        if not 0 < dtype.itemsize <= _ITEM:
            raise invalid_numpy(f"dtype {shown(descr)} has elements of {dtype.itemsize} bytes; 1 to {_ITEM} are taken")
        return dtype
    if not isinstance(descr, list) or not 0 < len(descr) <= 1000 or depth > _DEPTH:
        raise invalid_numpy("the dtype is neither a name nor a list of fields")
    fields = []
    for field in descr:
        if type(field) is not tuple or len(field) not in (2, 3) or not isinstance(field[0], str):
            raise invalid_numpy("a field of the dtype is no pair of a name and a dtype")
        shape = field[2] if len(field) == 3 else ()
        if type(shape) is not tuple or not all(type(n) is int and 0 < n <= _ITEM for n in shape) or math.prod(shape) > _ITEM:
            raise invalid_numpy(f"field {shown(field[0])} has a shape that is none")
        fields.append((field[0], dtype_of(field[1], depth + 1), shape) if shape else (field[0], dtype_of(field[1], depth + 1)))
    try:
        dtype = np.dtype(fields)
    except (TypeError, ValueError):
        raise invalid_numpy("the fields of the dtype do not fit together") from None
    if not 0 < dtype.itemsize <= _ITEM:
        raise invalid_numpy(f"records of {dtype.itemsize} bytes; 1 to {_ITEM} are taken")
    return dtype


def check_layout(layout: Layout, name: str) -> None:
    """Raises: InputRefused: invalid-numpy, where no array can have that shape."""
    if type(layout.fortran) is not bool or type(layout.shape) is not tuple or len(layout.shape) > _RANK or not all(type(n) is int and 0 <= n < 1 << 48 for n in layout.shape):
        raise invalid_numpy(f"the header of {shown(name)} has a shape that is no tuple of at most {_RANK} sizes")
    if math.prod(n or 1 for n in layout.shape) * layout.dtype.itemsize >= 1 << 63:  # numpy's own bound, which zeros do not help
        raise invalid_numpy(f"{shown(name)} has the shape {list(layout.shape)}, which no array can have")
    if not layout.nbytes and math.prod(n or 1 for n in layout.shape) > _EMPTY:
        raise invalid_numpy(f"{shown(name)} has the shape {list(layout.shape)} and no element; at most {_EMPTY} rows of nothing are taken")


@dataclass(frozen=True)
class ArrayFile:
    """An array as it lies in a file, from byte `start` on."""

    path: Path
    start: int
    layout: Layout

    def rows(self, each: int) -> Iterator[np.ndarray]:
        """The stored rows, `each` at a time (the last may be fewer): [n, ...]."""
        for at in range(0, self.layout.stored[0], each):
            yield self.read(at, min(each, self.layout.stored[0] - at))

    def read(self, first: int, count: int) -> np.ndarray:
        """Stored rows, [count, ...], read-only."""
        with self.path.open("rb") as f:
            f.seek(self.start + first * self.layout.row_bytes)
            data = f.read(count * self.layout.row_bytes)
        wide = self.layout.stored[1:]
        return np.frombuffer(data, self.layout.dtype, count * math.prod(wide)).reshape(count, *wide)

    def some(self, most: int) -> np.ndarray:
        """Stored rows from the beginning, the middle and the end, `most` bytes at most together (one row at least): [n, ...]."""
        stored, width = self.layout.stored, max(1, self.layout.row_bytes)
        count = min(stored[0], max(1, most // width))
        parts = [(0, count)] if count == stored[0] else [(s, max(1, count // 3)) for s in (0, (stored[0] - count // 3) // 2, stored[0] - max(1, count // 3))]
        return np.concatenate([self.read(first, n) for first, n in parts])

    def whole(self) -> np.ndarray:
        """In its own shape, read-only."""
        data = np.concatenate([*self.rows(max(1, (16 << 20) // max(1, self.layout.row_bytes)))] or [np.empty(self.layout.stored, self.layout.dtype)])
        return data.reshape(self.layout.shape[::-1]).T if self.layout.fortran else data.reshape(self.layout.shape)


def open_npy(path: Path, name: str) -> ArrayFile:
    """The array of a .npy file.

    Args:
        name: of the file, for a message.

    Raises:
        InputRefused: invalid-numpy, unsafe-pickle, kind-mismatch.
    """
    size = path.stat().st_size
    with path.open("rb") as f:
        start, layout = _read_header(f, name)
    check_layout(layout, name)
    if size - start != layout.nbytes:
        raise invalid_numpy(f"{shown(name)} holds {size - start} bytes, and its shape {list(layout.shape)} of {shown(str(layout.descr))} takes {layout.nbytes}")
    return ArrayFile(path, start, layout)


def _read_header(f: BinaryIO, name: str) -> tuple[int, Layout]:
    head = f.read(12)
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        raise InputRefused("unsafe-pickle", f"{shown(name)} is a pickle, which is never read here")
    if head[:6] != MAGIC or len(head) < 12 or head[6] not in (1, 2, 3):
        raise invalid_numpy(f"{shown(name)} does not begin as a .npy file does")
    width = 2 if head[6] == 1 else 4
    length, start = int.from_bytes(head[8 : 8 + width], "little"), 8 + width
    if length > _HEADER:
        raise invalid_numpy(f"the header of {shown(name)} has {length} bytes; at most {_HEADER} are taken")
    f.seek(start)
    raw = f.read(length)
    if len(raw) != length:
        raise invalid_numpy(f"{shown(name)} ends within its header")
    layout = Layout(*parse_header(raw, name, "utf-8" if head[6] == 3 else "latin-1"))
    dtype_of(layout.descr)
    return start + length, layout


def write_header(out: BinaryIO, layout: Layout) -> None:
    """As numpy writes it."""
    header = {"descr": layout.descr, "fortran_order": layout.fortran, "shape": layout.shape}
    text = "{" + "".join(f"'{k}': {v!r}, " for k, v in sorted(header.items())) + "}"
    raw = text.encode("latin-1") if text.isascii() else text.encode()
    wide = not text.isascii() or len(raw) > 60000
    room = 12 if wide else 10
    raw += b" " * (-(room + len(raw) + 1) % 64) + b"\n"
    out.write(MAGIC + (b"\x03\x00" if wide else b"\x01\x00") + len(raw).to_bytes(4 if wide else 2, "little") + raw)
