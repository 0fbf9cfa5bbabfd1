"""Leaves columns or arrays out, or puts hashes in their place, by name."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterator

import pyarrow as pa

from app.errors import InputRefused
from app.limits import shown
from worker.datasets import rows
from worker.datasets.csv_dialect import Dialect, header_of
from worker.datasets.sources import Source
from worker.datasets.tables import Table, selected, widths

_CHARACTERS = 32
"""Of a hash, in hexadecimal: 128 bits."""


def apply(sources: list[Source], drop: list[str], hashed: list[str], pointer: str) -> list[dict]:
    """Returns: a row of the report for all that is dropped, and notes on what is hashed.

    Raises:
        InputRefused: not-selectable, where no file has a name, nothing would be left, or what is to be hashed has no text.
    """
    known = {n for s in sources for n in rows.names(s)}
    for field, wanted in (("drop", drop), ("hash", hashed)):
        for i, name in enumerate(wanted):
            if name not in known:
                raise InputRefused("not-selectable", f"no column or array is called {shown(name)}; there are {', '.join(map(shown, sorted(known)[:10]))}", pointer=f"{pointer}/{field}/{i}")
    told = []
    key = secrets.token_bytes(32)
    for source in sources:
        if {*rows.names(source)} <= set(drop) and rows.names(source):
            raise InputRefused("not-selectable", f"nothing would be left of {shown(source.name)}", pointer=f"{pointer}/drop")
        if source.table is not None:
            told += _table(source, drop, hashed, key, pointer)
        for name in [n for n in source.arrays if n in drop]:
            layout = source.arrays.pop(name).layout
            told.append({"name": f"{source.name}/{name}", "action": "dropped", "type": str(layout.dtype), "shape": list(layout.shape), "bytes_before": layout.nbytes, "bytes_after": 0, "reason": "dropped by the recipe"})
        if found := [n for n in source.arrays if n in hashed]:
            raise InputRefused("not-selectable", f"{shown(found[0])} of {shown(source.name)} is an array; columns of tables are hashed", pointer=f"{pointer}/hash/{hashed.index(found[0])}")
    return told


def _table(source: Source, drop: list[str], hashed: list[str], key: bytes, pointer: str) -> list[dict]:
    schema = source.table.schema
    gone = [i for i, n in enumerate(schema.names) if n in drop]
    told = []
    if gone:
        before = widths(source.table)
        told = [
            {"name": f"{source.name}/{schema.names[i]}", "action": "dropped", "type": str(schema.field(i).type), "bytes_before": before[i], "bytes_after": 0, "reason": "dropped by the recipe"} for i in gone
        ]
        source.table = selected(source.table, None, [i for i in range(len(schema)) if i not in gone])
    schema = source.table.schema
    chosen = [i for i, n in enumerate(schema.names) if n in hashed]
    for i in chosen:
        kind = schema.field(i).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)):
            raise InputRefused("not-selectable", f"column {shown(schema.names[i])} is of type {kind}; text and whole numbers are hashed", pointer=f"{pointer}/hash/{hashed.index(schema.names[i])}")
    if chosen:
        source.table = _hashed(source.table, chosen, key)
    if source.dialect and (gone or chosen):
        header = header_of(source.table.schema.names, source.dialect) if source.dialect.header else ""
        source.dialect = Dialect(**source.dialect.stored() | {"header": header})
    for i in chosen:
        source.notes[source.table.schema.names[i]] = "hashed under a key that is kept nowhere"
    return told


def _hashed(table: Table, chosen: list[int], key: bytes) -> Table:
    fields = [pa.field(f.name, pa.string(), f.nullable) if i in chosen else f for i, f in enumerate(table.schema)]
    schema = pa.schema(fields, metadata={k: v for k, v in (table.schema.metadata or {}).items() if k != b"pandas"})

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in table.batches():
            columns = [_hash(c, key) if i in chosen else c for i, c in enumerate(batch.columns)]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

    return Table(schema, table.rows, batches)


def _hash(column: pa.Array, key: bytes) -> pa.Array:
    """Each distinct value once."""
    coded = column.dictionary_encode()
    tokens = [token(key, str(v)) for v in coded.dictionary.to_pylist()]
    return pa.DictionaryArray.from_arrays(coded.indices, pa.array(tokens, pa.string())).cast(pa.string())


def token(key: bytes, text: str) -> str:
    return hmac.new(key, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:_CHARACTERS]

