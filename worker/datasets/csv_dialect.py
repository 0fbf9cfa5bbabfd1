"""How a csv file is written: what stands between its fields, which of them have quotes, how its lines end, and its header line."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass
from pathlib import Path

from app.errors import InputRefused
from app.limits import shown
from worker.datasets.refusals import invalid_table

DELIMITERS = ",;\t|"
QUOTING = ("needed", "all", "text")
_HEAD, _BLOCK = 1 << 20, 4 << 20


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


@dataclass(frozen=True)
class Head:
    """What the first line of a file and its last byte tell. Args: names: of the columns. quotes: whether there are any in the whole file."""

    names: list[str]
    delimiter: str
    newline: str
    header: str
    ended: bool
    quotes: bool

    def dialects(self) -> list[Dialect]:
        """Those that the file may be written in, the plainest first."""
        return [Dialect(self.delimiter, quoting, self.newline, self.header, self.ended) for quoting in (QUOTING if self.quotes else QUOTING[:1])]


def read_head(path: Path, name: str) -> Head | Text:
    """Raises: InputRefused: kind-mismatch, where the file is binary; invalid-table, where it is empty."""
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
    header = "" if _is_data(names) else first + newline
    if not header and first.startswith("\ufeff"):
        return Text("it begins with a byte order mark and has no header")
    if not header or len(set(names)) != len(names) or not all(names):
        names = [f"column_{i}" for i in range(len(names))]
    return Head(names, delimiter, newline, header, last == b"\n", quotes)


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


def header_of(names: list[str], dialect: Dialect) -> str:
    """A header line of other columns, in the same style."""
    out = io.StringIO()
    csv.writer(out, delimiter=dialect.delimiter, lineterminator=dialect.newline, quoting=csv.QUOTE_MINIMAL if dialect.quoting == "needed" else csv.QUOTE_ALL).writerow(names)
    return out.getvalue()
