"""A csv file as a table whose text comes back byte for byte.

A column has a type only where its text follows from the values: whole numbers, decimals of one length, floats as Python writes them, dates and times; all
else stays text. How fields are quoted, how lines end and the header line are kept beside the table. Where that does not give the same bytes (a mixture of
styles, blanks around fields, another encoding than UTF-8), the text itself is kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from app.limits import shown
from worker.datasets.csv_dialect import Dialect, Head, Text, read_head
from worker.datasets.csv_lines import lines, same_bytes
from worker.datasets.csv_types import kinds, typed
from worker.datasets.refusals import invalid_table
from worker.datasets.tables import Table, check_width, reading

_BLOCK = 4 << 20


class _KeptAsText(Exception):
    """With the reason."""


def open_csv(path: Path, name: str) -> tuple[Dialect, Table] | Text:
    """Raises: InputRefused: invalid-table, where the lines have different numbers of fields; kind-mismatch; limit-entries."""
    head = read_head(path, name)
    if isinstance(head, Text):
        return head
    try:
        texts = _texts(path, name, head)
    except _KeptAsText as e:
        return Text(str(e))
    check_width(texts.schema, name)
    table = typed(texts, kinds(texts))
    for dialect in head.dialects():
        if same_bytes(path, lines(table.batches(), table.schema, dialect)):
            return dialect, table
    return Text("its fields or lines are written in several ways")


def _texts(path: Path, name: str, head: Head) -> Table:
    """All columns as text."""
    names, quotes = head.names, head.quotes
    schema = pa.schema([(n, pa.string()) for n in names])

    def batches() -> Iterator[pa.RecordBatch]:
        with reading(name), _as_text(), pa.csv.open_csv(
            str(path), pa.csv.ReadOptions(use_threads=False, block_size=_BLOCK, column_names=names, skip_rows=int(bool(head.header))),
            pa.csv.ParseOptions(delimiter=head.delimiter, quote_char='"' if quotes else False, newlines_in_values=quotes, ignore_empty_lines=len(names) > 1),
            pa.csv.ConvertOptions(column_types=schema, strings_can_be_null=False, quoted_strings_can_be_null=False, check_utf8=True),
        ) as reader:  # fmt: skip
            for batch in reader:
                if batch.num_columns != len(schema):  # of a first line that is empty
                    raise invalid_table(f"{shown(name)} has {len(schema)} fields in its first line and {batch.num_columns} below")
                yield pa.RecordBatch.from_arrays([pc.fill_null(c, "") for c in batch.columns], schema=schema)

    return Table(schema, sum(len(b) for b in batches()), batches)


@contextlib.contextmanager
def _as_text() -> Iterator[None]:
    try:
        yield
    except pa.ArrowInvalid as e:
        if "UTF8" in str(e):
            raise _KeptAsText("it is not UTF-8") from None
        if "straddling" in str(e):
            raise _KeptAsText(f"a line is longer than {_BLOCK >> 20} MiB") from None
        raise
