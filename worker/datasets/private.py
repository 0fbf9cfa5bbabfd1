"""What a data set tells beside its data: paths, metadata of tables and of their columns, files that are no data. The rows themselves are the data, and are not looked at."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa

from app.formats import suffix
from app.limits import Limits
from app.sensitive import side_file
from worker.datasets import rows
from worker.datasets.sources import Source
from worker.datasets.tables import retold
from worker.private import archives, binaries, texts
from worker.private.patterns import named, spans

_LARGEST = 512 << 20
_OURS = (b"ARROW:schema", b"PARQUET:field_id")
"""Metadata that readers of the formats have written for themselves."""


def look(sources: list[Source], inp: Path, scratch: Path, strip: bool, limits: Limits = Limits()) -> tuple[list[dict], list[dict]]:
    """Go through what was uploaded to `inp`; with `strip`, `sources` are left without what is found.

    Returns:
        findings `{where, what, masked?}`, and rows of the report for files that are left out.
    """
    found: list[dict] = []
    dropped: list[dict] = []
    for path in [p for p in inp.iterdir() if suffix(p.name) in (".zip", ".npz")]:
        found += archives.look(path, path.name, "zip", limits)
    for i, source in enumerate(list(sources)):
        name, told = archives.renamed(source.name)
        found += [texts.finding("the path of a file", s.what, source.name[s.start : s.end]) for s in told]
        found += [f for column in rows.names(source) for f in _name(name, column)]
        if source.table is not None:
            schema = _schema(source.table.schema, name, found)
            if strip and not schema.equals(source.table.schema, check_metadata=True):
                source.table = retold(source.table, schema)
        elif source.format == "other" and not _kept(source, name, found, scratch / f"clean-{i}", strip):
            sources.remove(source)
            size = source.path.stat().st_size
            dropped.append({"name": source.name, "action": "dropped", "type": "other", "bytes_before": size, "bytes_after": 0, "reason": "it tells about its owner (see sanitized)"})
            continue
        if strip and told:
            source.name = name if name and name not in {s.name for s in sources} else f"{i}-{Path(name or source.name).name}"
    return found, dropped


def _name(file: str, column: str) -> list[dict]:
    """Names stay: what reads the data set knows columns by them. `columns` drops or hashes those whose values tell."""
    inside = [texts.finding(f"{file}: the name of a column, which stays", s.what, column[s.start : s.end]) for s in spans(column)]
    return inside or ([{"where": f"{file}/{column}", "what": "a column that names people, hosts or secrets; the step columns drops or hashes it"}] if named(column) else [])


def _schema(schema: pa.Schema, where: str, found: list[dict]) -> pa.Schema:
    """The same without what its metadata tells."""
    fields = [f.with_metadata(_metadata(f.metadata, f"{where}: metadata of {f.name}", found)) if f.metadata else f for f in schema]
    return pa.schema(fields, metadata=_metadata(schema.metadata, f"{where}: metadata", found))


def _metadata(metadata: dict[bytes, bytes] | None, where: str, found: list[dict]) -> dict[bytes, bytes] | None:
    kept = {}
    for key, value in (metadata or {}).items():
        before = len(found)
        clean = value if key in _OURS else _value(key.decode(errors="replace"), value, where, found)
        if len(found) == before:
            kept[key] = value
        elif clean is not None:
            kept[key] = clean
    return kept or None


def _value(key: str, value: bytes, where: str, found: list[dict]) -> bytes | None:
    """A value without what tells; JSON (pandas', Hugging Face's) stays JSON. None where it goes as a whole."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        found += (seen := binaries.look(f"{where}: {key}", value)).findings
        return seen.clean
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = text
    clean = texts.values({key: document}, where, found)
    left = next(iter(clean.values()))
    return None if list(clean) != [key] else (left if isinstance(left, str) else json.dumps(left)).encode()


def _kept(source: Source, name: str, found: list[dict], target: Path, strip: bool) -> bool:
    """Whether a file that is no data stays; with `strip` it is written anew where it tells something."""
    if what := side_file(source.name):
        found.append({"where": name, "what": what})
        return not strip
    if source.path.stat().st_size > _LARGEST:
        found.append({"where": name, "what": f"a file of more than {_LARGEST >> 20} MiB that is not looked through"})
        return not strip
    data = source.path.read_bytes()
    text = None if b"\0" in data[:4096] else _text(data)
    looked = texts.look(name, text) if text is not None else binaries.look(name, data)
    found += looked.findings
    if not looked.findings or not strip:
        return True
    if looked.clean is None:
        return False
    target.write_bytes(looked.clean.encode() if isinstance(looked.clean, str) else looked.clean)
    source.path = target
    return True


def _text(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None
