"""One job, from the input folder to the result: read -> plan -> (prune -> quantize -> encode) per tensor -> write -> read back -> report.

    inp/             what the user uploaded, read-only
    out/files/       the result
    out/report.json  what happened to every tensor
    out/scratch/     free to use (extracted archives)

One tensor is in memory at a time: the input is mapped, the output written as it is made.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import torch

from app import gates
from app.errors import AccountingMismatch
from app.recipe import Lossless, Recipe, matcher, parse_recipe
from worker import report
from worker.checkpoint import Checkpoint, Segment
from worker.formats import open_checkpoint
from worker.formats.sensitive import findings
from worker.methods import apply, plan, prepare
from worker.output import open_writer, reopen
from worker.restore import restore
from worker.sanitize import sanitized

Emit = Callable[[dict], None]


class Progress:
    """Tells the worker how far it is, at most five times a second."""

    def __init__(self, emit: Emit, stage: str, total: int):
        self.emit, self.stage, self.total = emit, stage, max(total, 1)
        self.done, self.last = 0, 0.0

    def add(self, nbytes: int) -> None:
        self.done += nbytes
        if (now := time.monotonic()) - self.last > 0.2 or self.done >= self.total:
            self.last = now
            fraction = min(1.0, self.done / self.total)
            self.emit({"event": "progress", "stage": self.stage, "fraction": fraction, "bytes_done": self.done, "bytes_total": self.total})


def run(inp: Path, out: Path, spec: dict, emit: Emit) -> None:
    """Carry out `spec` (`recipe`, `output`, `gates`, `sanitize`) on the files in `inp`.

    Raises:
        ModelpressError: a refusal, a failed gate (its report is written first), a mismatch in the accounting.
    """
    files, scratch = out / "files", out / "scratch"
    files.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(exist_ok=True)
    recipe = parse_recipe(spec["recipe"])
    if recipe.kind == "restore":
        result = _restored(inp, scratch, files, emit)
    else:
        checkpoint = sanitized(open_checkpoint(inp, scratch), scratch, strip=spec["sanitize"] == "strip")
        try:
            work = _lossless if recipe.kind == "lossless" else _lossy
            rows, proof = work(checkpoint, recipe, spec["output"]["format"], files, emit)
            report.account(checkpoint, rows)
            result = _figures(checkpoint, rows, files) | {
                "load_proof": proof,
                "sanitized": {"mode": spec["sanitize"], "findings": findings(checkpoint)},
                "notes": checkpoint.notes,
                "container": checkpoint.container,
            }
        finally:
            checkpoint.close()
    judged = gates.judge(spec.get("gates") or {}, result["tensors"], result["totals"])
    document = {"version": 1, "recipe": spec["recipe"], "output": spec["output"], "gates": judged, "environment": report.environment()} | result
    (out / "report.json").write_text(json.dumps(document, allow_nan=False))
    gates.enforce(judged)


def _figures(checkpoint: Checkpoint, rows: list[dict], files: Path) -> dict:
    sizes = {p.relative_to(files).as_posix(): p.stat().st_size for p in sorted(files.rglob("*")) if p.is_file()}
    before = sum(p.stat().st_size for p in checkpoint.files.values())
    return {"tensors": rows, "totals": report.totals(rows, sizes, before)}


def _lossy(checkpoint: Checkpoint, recipe: Recipe, output: str, files: Path, emit: Emit) -> tuple[list[dict], dict]:
    """Every tensor through the steps that its plan names, then the result read back and compared."""
    plans = plan(checkpoint, recipe, output)
    prepare(checkpoint, recipe, plans)
    progress = Progress(emit, "compress", sum(s.nbytes for s in checkpoint.tensors.values()))
    writer = open_writer(output, files, checkpoint, plans, recipe)
    rows, sums = [], {}
    for name, tensor_plan in plans.items():
        original = checkpoint.read(name)
        encoded = apply(tensor_plan, original)
        rows.append(report.encoded_row(original, encoded, writer.write(encoded)))
        sums[name] = checksum(encoded.dense)
        progress.add(encoded.spec.nbytes)
    writer.finish()
    rows += report.leftover_rows(checkpoint, stored=False)
    return rows, _read_back(output, files, rows, sums, emit)


def checksum(tensor: torch.Tensor) -> tuple:
    """dtype, shape and the CRC-32 of a tensor's bytes (row-major)."""
    data = tensor.contiguous().reshape(-1).view(torch.uint8)
    return str(tensor.dtype), tuple(tensor.shape), zlib.crc32(data.numpy())


def _read_back(output: str, files: Path, rows: list[dict], sums: dict[str, tuple], emit: Emit) -> dict:
    """Open the result with its reader and hold every tensor against what was meant: dtype, shape, bytes stored and values.

    Raises:
        AccountingMismatch: naming the tensor.
    """
    progress = Progress(emit, "verify", sum(r["bytes_before"] for r in rows))
    with reopen(output, files) as result:
        for r in rows:
            if (name := r["name"]) not in sums:
                continue
            if (got := checksum(result.read(name))) != sums[name]:
                raise AccountingMismatch(f"tensor {name!r} reads back as {got}, written as {sums[name]}")
            if (stored := result.stored_bytes(name)) != r["bytes_after"]:
                raise AccountingMismatch(f"tensor {name!r} takes {stored} bytes, expected {r['bytes_after']}")
            progress.add(r["bytes_before"])
        return {"reader": result.reader, "tensors": len(sums), "values": "identical to what the report measures"}


def _lossless(checkpoint: Checkpoint, recipe: Recipe, output: str, files: Path, emit: Emit) -> tuple[list[dict], dict]:
    """Whole files by segments; the proof decodes them again and compares SHA-256 digests."""
    (step,) = recipe.step(Lossless)[:1]
    progress = Progress(emit, "compress", sum(p.stat().st_size for p in checkpoint.files.values()))
    path = files / PACKED_NAME
    stored = pack_files(checkpoint, path, matcher(step), progress.add)
    progress = Progress(emit, "verify", progress.total)
    digests = verify_packed(path, progress.add)
    rows = _segment_rows(checkpoint, stored, matcher(step)) + report.leftover_rows(checkpoint, stored=True)
    return rows, {"reader": "modelpress packed", "files": digests, "values": "decoded again, SHA-256 of every file equal to the input's"}
