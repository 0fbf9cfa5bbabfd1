"""One job, from the input folder to the result: read -> plan -> (prune -> quantize -> encode) per tensor -> write -> read back -> report.

    inp/             what the user uploaded, read-only
    out/files/       the result
    out/report.json  what happened to every tensor
    out/scratch/     free to use (extracted archives)
"""

from __future__ import annotations

import importlib
import json
from functools import partial
from pathlib import Path

import torch

from app import advice, budget, gates
from app.recipe import parse_recipe
from app.remarks import remarks
from worker import lossless, lossy, report
from worker.devices import CPU, device_of
from worker.formats import open_checkpoint
from worker.lossy import ModelWide
from worker.narrowing import narrow
from worker.private.model import look
from worker.progress import Emit, Progress
from worker.restore import restore
from worker.sanitize import sanitized
from worker.sizes import sizes
from worker.statistics import beside

OTHER = {"images": "worker.images.job", "dataset": "worker.datasets.job"}
"""What carries out jobs on something else than a model. Its libraries are imported by such jobs alone."""


def run(inp: Path, out: Path, spec: dict, emit: Emit, ahead: ModelWide | None = None) -> None:
    """Carry out `spec` (`recipe`, `output`, `gates`, `sanitize`, `device`) on the files in `inp`.

    Args:
        ahead: works on the model as a whole before anything is written.

    Raises:
        ModelpressError: a refusal, a failed gate (its report is written first), a mismatch in the accounting.
    """
    if (kind := spec.get("kind", "model")) != "model":
        return importlib.import_module(OTHER[kind]).run(inp, out, spec, emit)
    files, scratch = out / "files", out / "scratch"
    files.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(exist_ok=True)
    kind = parse_recipe(spec["recipe"]).kind
    device = device_of(spec) if kind == "lossy" else CPU
    result = _restored(inp, scratch, files, emit) if kind == "restore" else _compressed(inp, scratch, files, spec, emit, device, ahead)
    later = gates.ON_OUTPUTS if spec.get("calibration") else ()  # `worker.measuring` judges them, once the result has been run
    asked = {gate: limit for gate, limit in (spec.get("gates") or {}).items() if gate not in later}
    judged = gates.judge(asked, result["tensors"], result["totals"])
    document = {"version": 1, "recipe": spec["recipe"], "output": spec["output"], "gates": judged, "environment": report.environment(device, bool(spec.get("calibration")))} | result
    if spec.get("search"):
        document["search"] = spec["search"]
    elif following := advice.after(judged, parse_recipe(spec["recipe"]), spec["output"]["format"], advice.given(spec)):
        document["next"] = following
    (out / "report.json").write_text(json.dumps(document, allow_nan=False))
    if spec.get("search"):
        budget.enforce(budget.held(budget.bounds(spec["budget"]), result["tensors"], result["totals"], {}))
    gates.enforce(judged)


def _compressed(inp: Path, scratch: Path, files: Path, spec: dict, emit: Emit, device: torch.device, ahead: ModelWide | None) -> dict:
    recipe = parse_recipe(spec["recipe"])
    whole = recipe.kind == "lossless"
    opened = open_checkpoint(inp, scratch)
    private = look(opened, inp, scratch)
    checkpoint = sanitized(opened, private if spec["sanitize"] == "strip" else None, scratch, whole_files=whole)
    try:
        left, statistics, width = narrow(checkpoint, recipe, scratch, None if whole else beside(spec), device)
        compress = lossless.compress if whole else partial(lossy.compress, device=device, statistics=statistics, ahead=ahead)
        rows, proof = compress(left, recipe, spec["output"]["format"], files, emit)
        report.account(checkpoint, rows)
        before = sum(p.stat().st_size for p in checkpoint.files.values())
        return {
            "tensors": rows,
            "totals": report.totals(rows, sizes(files), before),
            "load_proof": proof,
            "sanitized": {"mode": spec["sanitize"], "findings": private.listed},
            "container": checkpoint.container,
            "notes": [*left.notes, *remarks(recipe)],
        } | ({"width": width} if width else {}) | ({ahead.section: ahead.told} if ahead else {})
    finally:
        checkpoint.close()


def _restored(inp: Path, scratch: Path, files: Path, emit: Emit) -> dict:
    """The original files; their tensors are listed as they came out, none of them changed any more."""
    before = sum(sizes(inp).values())
    outcome = restore(inp, scratch, files, Progress(emit, "restore", before).add)
    checkpoint = open_checkpoint(files, scratch)
    try:
        rows = [report.row(s, "copied", s.nbytes, reason="restored", relative_error=0.0) for s in checkpoint.tensors.values()]
        rows += report.leftover_rows(checkpoint, stored=True)
        return {"tensors": rows, "totals": report.totals(rows, sizes(files), before), "load_proof": {"reader": "modelpress", "restored": outcome}}
    finally:
        checkpoint.close()
