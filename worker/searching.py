"""The search stage of `auto`: find the recipe that keeps to a budget.

    inp/                 the model, read-only
    spec["beside"]       calibration, labels, gradients, statistics: whatever there is
    spec["budget"]       see `app.budget`
    out/search.json      {"recipe": {"steps": [...]}, "search": what is told of it in the report}
    out/resume           what was reconstructed when the recipe was carried out here, so that nothing is worked out twice
    out/report.json      of a budget that cannot be met: what was seen, and the nearest that can
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.errors import BudgetNotMet
from worker import report
from worker.formats import open_checkpoint
from worker.progress import Emit
from worker.private.model import look
from worker.reconstructing import RESUME
from worker.sanitize import sanitized
from worker.search.finding import Search
from worker.search.telling import told

NAME = "search.json"


def run(inp: Path, out: Path, spec: dict, emit: Emit) -> None:
    """Raises:
    BudgetNotMet: once the report is written. InputRefused, InvalidJobSpec, NoTensorMatched: what the model, the data or the budget are refused for.
    """
    with opened(inp, out, spec, emit) as search:
        try:
            trial = search.find()
        except BudgetNotMet as e:
            document = {"version": 1, "recipe": spec["recipe"], "output": spec["output"], "search": told(search, None) | {"nearest": e.extra["nearest"]}}
            environment = {"environment": report.environment(search.device, search.effect is not None)}
            (out / "report.json").write_text(json.dumps(document | environment, allow_nan=False))
            raise
        (out / NAME).write_text(json.dumps({"recipe": trial.recipe, "search": told(search, trial)}, allow_nan=False))
        trial.hand_over(out / RESUME)


@contextmanager
def opened(inp: Path, out: Path, spec: dict, emit: Emit) -> Iterator[Search]:
    """The search of one model, which works in `out`. Raises: InputRefused, InvalidJobSpec, NoTensorMatched."""
    scratch = out / "scratch"
    scratch.mkdir(parents=True)
    opened = open_checkpoint(inp, scratch)
    checkpoint = sanitized(opened, look(opened, inp, scratch) if spec["sanitize"] == "strip" else None, scratch, whole_files=False)
    try:
        yield Search(inp, checkpoint, scratch, spec, emit)
    finally:
        checkpoint.close()


def child(inp: Path, out: Path, spec: dict, emit: Emit) -> None:
    """The child's entry: `run`, ended by one final event."""
    from worker.__main__ import run as ended

    ended(inp, out, spec, emit, work=run)
