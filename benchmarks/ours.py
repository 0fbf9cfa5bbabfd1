"""The stages of a job, each as the work of a row (`benchmarks.row`)."""

from __future__ import annotations

import json
import time
from pathlib import Path

from app.recipe import parse_recipe
from worker import calibrating, pipeline

DONE = "done"


def calibrate(inp: str, out: str, beside: dict) -> None:
    calibrating.run(Path(inp), Path(out), {"beside": beside, "seed": 0}, lambda event: None)


def compress(inp: str, out: str, recipe: dict, beside: dict) -> dict:
    """Returns `bits`: stored for each weight of the tensors that the recipe changed, with their scales, codebooks and masks; `bytes` of the whole file; their
    mean `relative_error`; `cpu` seconds."""
    start = time.process_time()
    spec = {"recipe": recipe, "output": {"format": "packed"}, "sanitize": "report", "seed": 0, "gates": {}, "beside": beside}
    _carry_out(Path(inp), Path(out), spec)
    report = json.loads(Path(out, "report.json").read_text())
    rows = [r for r in report["tensors"] if r["action"] in ("quantized", "pruned")]
    weights = sum(_count(r["shape"]) for r in rows)
    figures = {"bytes": report["totals"]["bytes_after"], "relative_error": report["totals"]["relative_error"], "cpu": time.process_time() - start}
    return {"bits": 8 * sum(r["bytes_after"] for r in rows) / weights} | figures


def search(inp: str, out: str, recipe: dict, budgets: list[dict], beside: dict) -> None:
    """The search of `auto` for one budget after another, from one table, and what it has found carried out: into out/0, out/1, ..., with `DONE` once it is there."""
    from app.errors import BudgetNotMet
    from worker import result, searching
    from worker.search.telling import told

    spec = {"recipe": recipe, "output": {"format": "packed"}, "sanitize": "report", "seed": 0, "gates": {}, "budget": budgets[0], "beside": beside}
    with searching.opened(Path(inp), Path(out) / "searched", spec, lambda event: None) as found:
        for i, budget in enumerate(budgets):
            (folder := Path(out) / str(i)).mkdir()
            try:
                trial = found.find(budget)
            except BudgetNotMet as e:
                (folder / "refused.json").write_text(json.dumps(e.detail))
                (folder / DONE).touch()
                continue
            (folder / searching.NAME).write_text(json.dumps({"recipe": trial.recipe, "search": told(found, trial)}))
            trial.hand_over(folder / "finished")
            given = {"beside": beside | ({"resume": str(folder / "finished")} if trial.finished else {})}
            _carry_out(Path(inp), folder, spec | given | {"budget": budget} | result.searched(folder / searching.NAME))
            (folder / DONE).touch()


def _carry_out(inp: Path, out: Path, spec: dict) -> None:
    parsed = parse_recipe(spec["recipe"])
    if parsed.recovers:
        from worker import recovering as work
    elif parsed.reconstructs:
        from worker import reconstructing as work
    else:
        work = pipeline
    work.run(inp, out, spec, lambda event: None)


def _count(shape: list[int]) -> int:
    n = 1
    for size in shape:
        n *= size
    return n
