"""The lines of a csv file out of a table, in the way that a dialect says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from worker.datasets.csv_dialect import Dialect
from worker.datasets.csv_types import written


def lines(batches: Iterator[pa.RecordBatch], schema: pa.Schema, dialect: Dialect) -> Iterator[bytes]:
    """The bytes of the file, piece by piece."""
    yield dialect.header.encode()
    held = b""
    for batch in batches:
        if not len(batch):
            continue
        if held:
            yield held
        fields = [_quoted(written(c), dialect, not pa.types.is_string(f.type)) for c, f in zip(batch.columns, schema, strict=True)]
        joined = pc.binary_join_element_wise(*fields, dialect.delimiter) if len(fields) > 1 else fields[0]
        held = (dialect.newline.join(joined.to_pylist()) + dialect.newline).encode()
    yield held if dialect.ended else held.removesuffix(dialect.newline.encode())


def _quoted(text: pa.Array, dialect: Dialect, number: bool) -> pa.Array:
    if dialect.quoting == "text" and number:
        return text
    quoted = pc.binary_join_element_wise('"', pc.replace_substring(text, '"', '""'), '"', "")
    if dialect.quoting in ("all", "text"):
        return quoted
    needs = pc.match_substring_regex(text, '["\r\n' + ("\\|" if dialect.delimiter == "|" else dialect.delimiter) + "]")
    return pc.if_else(needs, quoted, text) if pc.any(needs).as_py() else text


def same_bytes(path: Path, pieces: Iterator[bytes]) -> bool:
    with path.open("rb") as f:
        return all(f.read(len(piece)) == piece for piece in pieces) and not f.read(1)
