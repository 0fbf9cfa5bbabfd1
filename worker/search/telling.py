"""What is told of a search: the report's `search`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from worker.search.choosing import front
from worker.search.trial import Trial

if TYPE_CHECKING:
    from worker.search.finding import Search


def told(search: Search, trial: Trial | None) -> dict:
    """Args: trial: that was chosen; None where the budget cannot be met."""
    choosing, effect = search.choosing, search.effect
    seen = front(list(choosing.points.values())) if choosing else []
    figure = effect.figure if effect else "loss"
    return {
        "budget": search.bounds.budget,
        "met": trial is not None,
        "judged_by": {"task": effect.task, "figure": figure} | effect.samples if effect else {"figure": "error of the weights" if search.statistics is None else "gradients"},
        "tensors": len(search.names),
        "groups": len(search.groups),
        "options": sum(len(r.options) for r in search.table.rows),
        "measured": sum(len(r.measured) for r in search.table.rows if r.group.felt),
        "carried_out": [_trial(how, t) | ({"chosen": True} if t is trial else {}) for how, t in search.trials],
        "verified": len(choosing.points) if choosing else 0,
        "front": [{"how": p.how, "bytes": round(p.bytes), figure: p.figures.get(figure, p.lost)} for p in seen],
        "bounds": search.bounds.held(trial) if trial else {},
        "notes": search.notes,
        "seconds": {part: round(s, 3) for part, s in search.seconds.items()} | {"all": round(time.monotonic() - search.started, 3)},
    }


def _trial(how: str, trial: Trial) -> dict:
    return {"how": how, "bytes": trial.totals["bytes_after"], "relative_error": trial.totals["relative_error"]} | ({"quality": trial.quality} if trial.quality else {})
