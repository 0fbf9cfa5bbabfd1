"""The stages of a job in one process and one after another, as `worker.attempt` runs them in jails: calibrate, search, recover or reconstruct or compress,
measure."""

from __future__ import annotations

import importlib
from pathlib import Path

from app.recipe import recipe_of
from worker import pipeline, result
from worker.progress import Emit


def run(inp: Path, out: Path, spec: dict, emit: Emit) -> None:
    """Args:
        out: gets `files/`, `report.json`, and folders of the stages.
        spec: as a child reads it; `beside` has what is given, by role.

    Raises:
        ModelpressError: of the stage that refuses or fails; a failed gate's report is written first.
    """
    recipe, beside = recipe_of(spec), dict(spec.get("beside") or {})
    if (recipe.needs_gradients or (recipe.searches and "calibration" in beside)) and "gradients" not in beside:
        _stage("calibrating", inp, out / "calibrated", spec | {"beside": beside}, emit)
        beside["statistics"] = str(out / "calibrated" / "statistics.safetensors")
    if recipe.searches:
        found = out / "search"
        try:
            _stage("searching", inp, found, spec | {"beside": beside}, emit)
        finally:
            if (report := found / "report.json").exists():
                report.replace(out / "report.json")
        spec = spec | result.searched(found / "search.json")
        recipe = recipe_of(spec)
        if (finished := found / "resume").is_dir():
            beside["resume"] = str(finished)
    given = spec | {"beside": beside}
    if recipe.recovers or recipe.reconstructs:
        _stage("recovering" if recipe.recovers else "reconstructing", inp, out, given, emit)
    else:
        pipeline.run(inp, out, given, emit)
    if "calibration" in beside:
        measured = out / "measured"
        try:
            _stage("measuring", out, measured, spec | {"beside": beside | {"original": str(inp)}}, emit)
        finally:
            if (report := measured / "report.json").exists():
                report.replace(out / "report.json")


def _stage(name: str, inp: Path, out: Path, spec: dict, emit: Emit) -> None:
    """What needs transformers is imported when it is needed: most jobs do not."""
    out.mkdir(exist_ok=True)
    importlib.import_module(f"worker.{name}").run(inp, out, spec, emit)
