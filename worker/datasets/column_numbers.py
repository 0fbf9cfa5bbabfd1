"""Columns of numbers, dates, times and short decimals by pcodec, their nulls apart.

    part 1: which are there, one bit each, Zstandard; empty where all are    part 2: those numbers
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from worker.datasets import array_codecs, parts, pco
from worker.datasets.refusals import damaged


def dtype_of(kind: pa.DataType) -> np.dtype | None:
    """The numbers that a column's values are; None where they are none that pcodec takes."""
    if pa.types.is_decimal128(kind):
        return np.dtype("i8") if kind.precision <= 18 else None
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        dtype = np.dtype(kind.to_pandas_dtype())
        return dtype if dtype in pco.DTYPES else None
    if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        return np.dtype(f"i{kind.bit_width // 8}")
    return None


def fits(kind: pa.DataType) -> bool:
    return not isinstance(kind, pa.BaseExtensionType) and dtype_of(kind) is not None


def present(column: pa.Array) -> np.ndarray:
    """bool [n]: which are no nulls."""
    return column.is_valid().to_numpy(zero_copy_only=False)


def values(column: pa.Array) -> np.ndarray:
    """The numbers of a column [n]; whatever below a null."""
    dtype = dtype_of(column.type)
    if not len(column):
        return np.empty(0, dtype)
    buffer = column.buffers()[1]
    if pa.types.is_decimal128(column.type):
        pairs = np.frombuffer(buffer, "i8", 2 * len(column), 16 * column.offset)
        return pairs.reshape(-1, 2)[:, 0]
    return np.frombuffer(buffer, dtype, len(column), dtype.itemsize * column.offset)


def column_of(found: np.ndarray, there: np.ndarray | None, kind: pa.DataType) -> pa.Array:
    """The column whose `values` are `found` where `there` says so, null elsewhere."""
    found = np.ascontiguousarray(found)
    if pa.types.is_decimal128(kind):
        found = np.stack([found, found >> 63], 1)  # little-endian two's complement of 128 bits
    bits = None if there is None else pa.py_buffer(np.packbits(there, bitorder="little").tobytes())
    count = len(found)
    return pa.Array.from_buffers(kind, count, [bits, pa.py_buffer(found.tobytes())], 0 if there is None else int(count - there.sum()))


def pack_present(there: np.ndarray, level: int) -> bytes:
    return b"" if there.all() else array_codecs.encode("zstd", np.packbits(there, bitorder="little"), level)


def unpack_present(data: bytes, count: int) -> np.ndarray | None:
    """bool [count]; None where all are. Raises: InputRefused: invalid-dataset."""
    if not data:
        return None
    raw = np.frombuffer(array_codecs.unzstd(data, (count + 7) // 8), "u1")
    return np.unpackbits(raw, count=count, bitorder="little").astype(bool)


def encode(column: pa.Array, level: int) -> bytes:
    there = present(column)
    return parts.join([pack_present(there, level), pco.compress(np.ascontiguousarray(values(column)[there]))])


def decode(data: bytes, kind: pa.DataType, count: int) -> pa.Array:
    """Raises: InputRefused: invalid-dataset."""
    if not fits(kind):
        raise damaged(f"a column of type {kind} is none of numbers")
    bits, numbers = parts.split(data, 2)
    there = unpack_present(bits, count)
    found = pco.decompress(numbers, dtype_of(kind), count if there is None else int(there.sum()))
    if there is not None:
        spread = np.zeros(count, found.dtype)
        spread[there] = found
        found = spread
    return column_of(found, there, kind)
