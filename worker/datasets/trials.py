"""How a column of a table becomes smallest, by trial on some of its rows: which encoding of parquet each of its leaves takes, or numbers by pcodec.

A way that does not give the same back, types and bits, is none. What neither takes (unions, intervals, dictionaries with entries that no row uses)
goes into an Arrow stream.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from worker.datasets import column_numbers
from worker.datasets.same import same

_OTHER = {
    "INT32": ("PLAIN", "DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT"), "INT64": ("PLAIN", "DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT"),
    "FLOAT": ("BYTE_STREAM_SPLIT", "PLAIN"), "DOUBLE": ("BYTE_STREAM_SPLIT", "PLAIN"), "FIXED_LEN_BYTE_ARRAY": ("BYTE_STREAM_SPLIT", "PLAIN", "DELTA_BYTE_ARRAY"),
    "BYTE_ARRAY": ("PLAIN", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"),
}  # fmt: skip
DICTIONARY = "DICTIONARY"
_GAIN = 0.97
"""Numbers leave the parquet file, which other tools open, where that makes them so much smaller."""


@dataclass
class Way:
    """Args: kind: parquet, numbers, arrow or bounded. encodings: of each leaf, by its path. tried: bytes of the sample by way."""

    kind: str
    encodings: dict[str, str] = field(default_factory=dict)
    tried: dict[str, int] = field(default_factory=dict)


def options(encodings: dict[str, str], level: int) -> dict:
    """For `pq.ParquetWriter`."""
    plain = {path: e for path, e in encodings.items() if e not in (DICTIONARY, "")}
    return {
        "version": "2.6", "compression": "zstd", "compression_level": level, "write_statistics": False, "store_schema": True, "use_dictionary": [p for p, e in encodings.items() if e == DICTIONARY],
        "column_encoding": plain or None, "data_page_size": 1 << 20, "use_deprecated_int96_timestamps": False,
    }  # fmt: skip


def choose(column: pa.Array, field: pa.Field, level: int, numbers: bool) -> Way:
    """The way of a column, by a sample of it.

    Args:
        numbers: whether it may leave the parquet file.
    """
    table = pa.Table.from_arrays([column], schema=pa.schema([field]))
    try:
        paths, kinds, size = _written(table, {}, level)
    except (pa.ArrowException, OSError, ValueError, TypeError, UnicodeError):
        return Way("arrow")
    encodings = dict.fromkeys(paths, "")
    tried: dict[str, int] = {}
    for path, kind in zip(paths, kinds, strict=True):
        best = None
        for encoding in (DICTIONARY, *_OTHER.get(kind, ("PLAIN",))):
            try:
                size = _written(table, encodings | {path: encoding}, level)[2]
            except (pa.ArrowException, OSError):
                continue
            tried[encoding if len(paths) == 1 else f"{path} {encoding}"] = size
            if best is None or size < best:
                best, encodings = size, encodings | {path: encoding}
    if numbers and column_numbers.fits(field.type) and len(column):
        tried["pcodec"] = len(column_numbers.encode(column, level))
        if tried["pcodec"] < _GAIN * size_of(tried, encodings):
            return Way("numbers", tried=tried)
    for these in (encodings, dict.fromkeys(paths, DICTIONARY)):
        if _comes_back(table, these, level):
            return Way("parquet", these, tried)
    return Way("numbers" if "pcodec" in tried else "arrow", tried=tried)


def size_of(tried: dict[str, int], encodings: dict[str, str]) -> int:
    return min((n for name, n in tried.items() if name != "pcodec"), default=0) if len(encodings) == 1 else 0


def _sink(table: pa.Table, encodings: dict[str, str], level: int) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, **options(encodings, level)) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _written(table: pa.Table, encodings: dict[str, str], level: int) -> tuple[list[str], list[str], int]:
    """Paths and physical types of the leaves, and their bytes."""
    metadata = pq.read_metadata(pa.BufferReader(_sink(table, encodings, level)))
    leaves = [metadata.schema.column(i) for i in range(metadata.num_columns)]
    group = [metadata.row_group(0).column(i).total_compressed_size for i in range(metadata.num_columns)] if metadata.num_row_groups else []
    return [leaf.path for leaf in leaves], [leaf.physical_type for leaf in leaves], sum(group)


def _comes_back(table: pa.Table, encodings: dict[str, str], level: int) -> bool:
    try:
        back = pq.ParquetFile(pa.BufferReader(_sink(table, encodings, level))).read(use_threads=False)
    except (pa.ArrowException, OSError):  # what cannot be read back was never a way
        return False
    return same(whole(back.column(0)), whole(table.column(0)))


def whole(column: pa.ChunkedArray) -> pa.Array:
    """One array of all chunks."""
    if column.num_chunks == 1:
        return column.chunk(0)
    joined = column.unify_dictionaries().combine_chunks()
    return joined.chunk(0) if isinstance(joined, pa.ChunkedArray) else joined
