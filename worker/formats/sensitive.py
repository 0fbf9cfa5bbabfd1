"""Finds in a checkpoint what its owner may not want to publish."""

from __future__ import annotations

from collections.abc import Iterator

from app.limits import shown
from app.sensitive import side_file, telling
from worker.checkpoint import Checkpoint


def _strings(value: object, where: str, depth: int = 0) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, (dict, list)) and depth < 8:
        for k, v in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _strings(v, f"{where}.{k}" if where else str(k), depth + 1)


def findings(checkpoint: Checkpoint) -> list[dict]:
    """`[{where, what}]`, at most 200, for the report; values themselves are never repeated."""
    out = [{"where": path, "what": what} for path in checkpoint.files if path not in checkpoint.weight_files and (what := side_file(path))]
    for file, metadata in checkpoint.metadata.items():
        out += [{"where": f"{file}: __metadata__ {shown(k)}", "what": what} for k, v in metadata.items() if (what := telling(k, v))]
    for where, value in _strings(checkpoint.config or {}, ""):
        if what := telling(where.rsplit(".", 1)[-1], value):
            out.append({"where": f"config.json: {shown(where)}", "what": what})
    out += [{"where": d.name, "what": d.reason} for d in checkpoint.dropped if d.nbytes and not d.kept_in]
    return out[:200]
