"""A csv file as a table whose text comes back byte for byte.

A column has a type only where its text follows from the values: whole numbers, decimals of one length, floats as Python writes them, dates and times; all
else stays text. How fields are quoted, how lines end and the header line are kept beside the table. Where that does not give the same bytes (a mixture of
styles, blanks around fields, another encoding than UTF-8), the text itself is kept.
"""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from app.errors import InputRefused
from app.limits import shown
from worker.datasets.refusals import invalid_table
from worker.datasets.tables import Table, check_width, reading

DELIMITERS = ",;\t|"
QUOTING = ("needed", "all", "text")
_HEAD, _BLOCK, _LONGEST = 1 << 20, 4 << 20, 16 << 20
_DIGITS = 15
_FIRST = 200


@dataclass(frozen=True)
class Dialect:
    """Args: header: the first line as it stands, with its end; empty where it holds data. quoting: which fields have quotes. newline: that the lines end with.
    ended: whether the last one does."""

    delimiter: str
    quoting: str
    newline: str
    header: str
    ended: bool

    def stored(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class Text:
    """Why a file is kept as text."""

    reason: str


class _KeptAsText(Exception):
    """With the reason."""


def open_csv(path: Path, name: str) -> tuple[Dialect, Table] | Text:
    """Raises: InputRefused: invalid-table, where the lines have different numbers of fields, or fields are longer than 16 MiB; limit-entries."""
    with path.open("rb") as f:
        raw = f.read(_HEAD)
        quotes = _has_quotes(f, raw)
        f.seek(max(0, path.stat().st_size - 1))
        last = f.read(1)
    if b"\0" in raw:
        raise InputRefused("kind-mismatch", f"{shown(name)} is named like a csv file, and its content is binary")
    if not raw.strip():
        raise invalid_table(f"{shown(name)} is empty")
    try:
        head = raw.decode() if len(raw) < _HEAD else raw[: raw.rfind(b"\n") + 1].decode()
    except UnicodeDecodeError:
        return Text("it is not UTF-8")
    first, _, rest = head.partition("\n")
    if not head:
        return Text("its first line is longer than 1 MiB")
    newline = "\r\n" if first.endswith("\r") else "\n"
    first = first.removesuffix("\r")
    delimiter = _delimiter(first.removeprefix("\ufeff"), name)
    if (names := _fields(first.removeprefix("\ufeff"), delimiter)) is None:
        return Text("its first line is no line of fields")
    if first.count('"') % 2 or (not rest and len(raw) < _HEAD):
        return Text("its header has several lines, or nothing follows it")
    if _is_data(names):
        if first.startswith("\ufeff"):
            return Text("it begins with a byte order mark and has no header")
        header, names = "", [f"column_{i}" for i in range(len(names))]
    else:
        header = first + newline
    if len(set(names)) != len(names) or not all(names):
        names = [f"column_{i}" for i in range(len(names))]
    try:
        texts = _texts(path, name, names, delimiter, bool(header), quotes)
    except _KeptAsText as e:
        return Text(str(e))
    check_width(texts.schema, name)
    kinds = _kinds(texts)
    for quoting in QUOTING if quotes else QUOTING[:1]:
        dialect = Dialect(delimiter, quoting, newline, header, last == b"\n")
        table = _typed(texts, kinds)
        if same_bytes(path, lines(table.batches(), table.schema, dialect)):
            return dialect, table
    return Text("its fields or lines are written in several ways")


def _has_quotes(f, head: bytes) -> bool:
    chunk = head
    while chunk:
        if b'"' in chunk:
            return True
        chunk = f.read(_BLOCK)
    return False


def _fields(line: str, delimiter: str) -> list[str] | None:
    """None where the line ends within, or a field is longer than Python's reader takes."""
    try:
        return next(csv.reader([line], delimiter=delimiter), [""])
    except csv.Error:
        return None


def _delimiter(line: str, name: str) -> str:
    counts = {d: len(_fields(line, d) or []) for d in DELIMITERS}
    best = max(DELIMITERS, key=lambda d: counts[d])
    if name.lower().endswith(".tsv"):
        best = "\t"
    return best


def _is_data(fields: list[str]) -> bool:
    """A header has no number in it."""
    return any(_number(f) for f in fields)


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _texts(path: Path, name: str, names: list[str], delimiter: str, header: bool, quotes: bool) -> Table:
    """All columns as text."""
    schema = pa.schema([(n, pa.string()) for n in names])

    def batches() -> Iterator[pa.RecordBatch]:
        with reading(name), _as_text(), pa.csv.open_csv(
            str(path), pa.csv.ReadOptions(use_threads=False, block_size=_BLOCK, column_names=names, skip_rows=int(header)),
            pa.csv.ParseOptions(delimiter=delimiter, quote_char='"' if quotes else False, newlines_in_values=quotes, ignore_empty_lines=len(names) > 1),
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


def candidates(column: pa.Array) -> list[pa.DataType]:
    """The types that the text of a first part of a column may have, the narrowest first."""
    text = _present(column)
    lengths = pc.unique(pc.subtract(pc.binary_length(text), pc.add(pc.find_substring(text, "."), 1))) if len(text) else pa.array([], pa.int32())
    places = lengths[0].as_py() if len(lengths) == 1 else 0
    decimals = [pa.decimal128(18, places)] if 0 < places <= _DIGITS and pc.all(pc.greater_equal(pc.find_substring(text, "."), 0)).as_py() else []
    return [pa.int64(), *decimals, pa.float64(), pa.date32(), pa.timestamp("s"), pa.timestamp("ms"), pa.timestamp("us")]


def _present(column: pa.Array) -> pa.Array:
    return column.filter(pc.not_equal(column, ""))


def holds(column: pa.Array, kind: pa.DataType) -> bool:
    """Whether the text of a column is what its values of that type are written as; empty text is null."""
    text = _present(column)
    try:
        return written(text.cast(kind)).equals(text)
    except pa.ArrowException:
        return False


def written(column: pa.Array) -> pa.Array:
    """The text of values; that of nulls is empty. Floats as Python's repr has them, so that they come back exactly."""
    if pa.types.is_string(column.type):
        return column
    if pa.types.is_floating(column.type):
        return pa.array([repr(v) for v in column.fill_null(0.0).to_pylist()], pa.string()) if not column.null_count else pa.array(["" if v is None else repr(v) for v in column.to_pylist()], pa.string())
    return pc.fill_null(column.cast(pa.string()), "")


def _kinds(table: Table) -> list[pa.DataType]:
    """The narrowest type of each column that holds in all rows: guessed from the first of them, then held against all; one that fails makes way for the next."""
    left: list[list[pa.DataType] | None] = [None] * len(table.schema)
    open_ = set(range(len(left)))
    while open_:
        failed = set()
        for batch in table.batches():
            for i in open_:
                column = batch.column(i)
                if left[i] is None and len(some := _present(column)[:_FIRST]):
                    left[i] = [k for k in candidates(some) if holds(some, k)]
                while left[i] and not holds(column, left[i][0]):
                    left[i].pop(0)
                    failed.add(i)
        open_ = {i for i in failed if left[i]}
    return [k[0] if k else pa.string() for k in left]


def _typed(texts: Table, kinds: list[pa.DataType]) -> Table:
    schema = pa.schema([(f.name, k) for f, k in zip(texts.schema, kinds, strict=True)])

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in texts.batches():
            columns = [c if pa.types.is_string(k) else pc.if_else(pc.equal(c, ""), None, c).cast(k) for c, k in zip(batch.columns, kinds, strict=True)]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

    return Table(schema, texts.rows, batches)


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


def header_of(names: list[str], dialect: Dialect) -> str:
    """A header line of other columns, in the same style."""
    out = io.StringIO()
    csv.writer(out, delimiter=dialect.delimiter, lineterminator=dialect.newline, quoting=csv.QUOTE_MINIMAL if dialect.quoting == "needed" else csv.QUOTE_ALL).writerow(names)
    return out.getvalue()


def same_bytes(path: Path, pieces: Iterator[bytes]) -> bool:
    with path.open("rb") as f:
        return all(f.read(len(piece)) == piece for piece in pieces) and not f.read(1)
