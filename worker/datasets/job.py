"""A job on a data set: columns -> dedup -> prune -> quantize -> write, read again and compared -> report.

    inp/             what the user uploaded, read-only
    out/files/       modelpress.json, data/ (what is stored), kept/ (which rows were kept)
    out/report.json  a row for every column and array
    out/scratch/     free to use
"""

from __future__ import annotations

import itertools
import json
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np

from app import gates
from app.errors import AccountingMismatch
from app.limits import shown
from app.recipe import recipe_of
from app.steps.dataset import Columns, Dedup, PruneRows, QuantizeNumbers, Reencode
from worker.datasets import bounding, columns, private, restoring, rows, writing
from worker.datasets.index import write_index
from worker.datasets.sources import Source, open_sources
from worker.private.texts import listed
from worker.progress import Emit, Progress
from worker.sizes import sizes

_KEPT = 100_000
"""Positions of kept rows that the report has; all of them are in the artifact."""
_ENDINGS = (".arrays", ".parquet", ".numbers", ".bounded", ".arrow", ".bytes")
ACTIONS = ("encoded", "quantized", "pruned", "copied", "dropped")


def run(inp: Path, out: Path, spec: dict, emit: Emit) -> None:
    """Carry out `spec` on the files in `inp`.

    Raises:
        ModelpressError: a refusal, a failed gate (its report is written first), a mismatch in the accounting.
    """
    files, scratch = out / "files", out / "scratch"
    files.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(exist_ok=True)
    before = sum(sizes(inp).values())
    if recipe_of(spec).kind == "restore":
        told, more = restoring.restore(inp, files, Progress(emit, "restore", before).add), {}
    else:
        told, more = _stored(inp, scratch, files, spec, emit)
    after = sizes(files)
    totals = {
        "rows": len(told), "actions": {a: n for a in ACTIONS if (n := sum(r["action"] == a for r in told))},
        "bytes_before": before, "bytes_after": sum(after.values()), "ratio": round(before / max(1, sum(after.values())), 4), "files": after,
    }  # fmt: skip
    judged = gates.judge(spec.get("gates") or {}, [], totals)
    document = {"version": 1, "kind": "dataset", "recipe": spec["recipe"], "output": spec["output"], "gates": judged, "environment": _environment(), "tensors": [], "rows": told, "totals": totals} | more
    (out / "report.json").write_text(json.dumps(document, allow_nan=False))
    gates.enforce(judged)


def _stored(inp: Path, scratch: Path, files: Path, spec: dict, emit: Emit) -> tuple[list[dict], dict]:
    recipe = recipe_of(spec)
    sources = open_sources(inp, scratch)
    strip = spec["sanitize"] == "strip"
    found, told = private.look(sources, inp, scratch, strip)
    expected = {f"{s.name}/{n}" for s in sources for n in rows.names(s)} | {s.name for s in sources if not rows.names(s)} | {r["name"] for r in told}
    asked = {s.name: writing.Asked(9, True) for s in sources}
    kept, selections = [], []
    for i, step in enumerate(recipe.steps):
        pointer = f"/recipe/steps/{i}"
        match step:
            case Columns():
                told += columns.apply(sources, step.drop or [], step.hash or [], pointer)
            case Dedup() | PruneRows():
                selections += _select(sources, step, pointer, spec, scratch, emit)
            case QuantizeNumbers():
                bounding.apply(sources, step, asked, pointer)
            case Reencode():
                for a in asked.values():
                    a.level, a.numbers = step.level, step.container == "any"
    entries = []
    folders = {part for s in sources for part in itertools.accumulate(s.name.split("/")[:-1], lambda a, b: f"{a}/{b}")}
    progress = Progress(emit, "compress", 2 * sum(s.path.stat().st_size for s in sources))
    for source in sources:
        entry, written = writing.write(source, files, _stem(source.name, len(entries), folders), asked[source.name], progress.add)
        entries.append(entry)
        told += [_noted(row, source) for row in written]
    for n, selection in enumerate(selections):
        if (positions := selection.pop("positions")) is not None:
            path = files / "kept" / f"{n}.npy"
            path.parent.mkdir(exist_ok=True)
            np.save(path, positions, allow_pickle=False)
            kept.append({"path": selection["file"], "rows": f"kept/{n}.npy"})
            selection |= {"kept": len(positions), "positions": positions[:_KEPT].tolist(), "positions_in": f"kept/{n}.npy"}
    _account(expected, told)
    write_index(files, entries, kept)
    more = {"sanitized": {"mode": spec["sanitize"], "findings": listed(found)}}
    return told, more | ({"selections": selections} if selections else {})


def _select(sources: list[Source], step, pointer: str, spec: dict, scratch: Path, emit: Emit) -> list[dict]:
    from worker.datasets import deduplicating, pruning

    work = deduplicating if isinstance(step, Dedup) else pruning
    found = []
    for source in work.fitting(sources, step, pointer):
        kept, total, selection = work.choose(source, step, pointer, spec.get("seed", 0), emit)
        cut = rows.select(source, kept, total, scratch)
        for name in cut:
            source.cut.setdefault(name, total)
        found.append({"file": source.name, "method": step.method, "rows_before": total, "cut": cut, "positions": kept} | selection)
    return found


def _noted(row: dict, source: Source) -> dict:
    name = row["name"].removeprefix(f"{source.name}/")
    if name in source.cut:
        now = row.get("rows", (row.get("shape") or [0])[0])
        row |= {"action": "pruned" if row["action"] == "encoded" else row["action"], "rows_before": source.cut[name], "rows": now}
    return row | ({"note": source.notes[name]} if name in source.notes else {})


def _stem(name: str, i: int, folders: set[str]) -> str:
    """Where a file is stored: below its own name, unless that leaves no room for an ending, or a folder has the name with an ending."""
    if any(f"{name}{ending}" in folders for ending in _ENDINGS):
        return f"more/{i}"
    return f"data/{name}" if len(name) < 400 and all(len(p.encode()) < 200 for p in name.split("/")) and name.count("/") < 28 else f"more/{i}"


def _account(expected: set[str], told: list[dict]) -> None:
    """Every column, array and file that was there has exactly one row.

    Raises:
        AccountingMismatch: naming it.
    """
    got = [r["name"] for r in told]
    if missing := expected - set(got):
        raise AccountingMismatch(f"{len(missing)} columns or arrays are not accounted for, {shown(min(missing))} first")
    if extra := set(got) - expected:
        raise AccountingMismatch(f"{len(extra)} columns or arrays came from nowhere, {shown(min(extra))} first")


def _environment() -> dict:
    return {"python": platform.python_version(), "machine": platform.machine()} | {p: version(p) for p in ("modelpress", "numpy", "pyarrow", "pcodec", "zstandard", "torch")}
