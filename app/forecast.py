"""When a job will be done: one fraction and one ETA over all of its stages.

    left = what the stage at hand still takes + what the stages after it take
    fraction = spent / (spent + left), which never goes back

What a stage takes is a guess at first: what it took in the owner's last job of the same recipe, by bytes, else a rate of thumb. Once a tenth of a stage is done
its own pace counts instead, over the last minute rather than from its start, since machines get busier and idle again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.orm import Session

from app import speeds
from app.models import SUCCEEDED, Job
from app.recipe import recipe_of

WINDOW, MARKS = 60.0, 8  # seconds that a pace is taken over, and the marks that it needs at least
LEAST = 1e-6  # of a stage that counts as going on: a child may tell any fraction
SEEN = 0.1  # of a stage; after it the guess counts no more
RECENT = 20  # jobs that are looked at
_STAGES = ("fetch", "calibrate", "search", "compress", "recover", "reconstruct", "verify", "measure", "prove", "store", "sign")
"""Recovery and reconstruction begin once compression has made its plans; what is written after them counts as theirs."""


def stages(spec: dict) -> list[str]:
    """Of a job, in their order. A proof is guessed from the output's format: it is left out where there is no config.json."""
    recipe = recipe_of(spec)
    if recipe.kind == "restore":
        return ["fetch", "restore", "store", "sign"]
    wanted = {
        "calibrate": (recipe.needs_gradients or (recipe.searches and spec.get("calibration") is not None)) and not spec.get("gradients"),
        "search": recipe.searches,
        "recover": recipe.recovers,
        "reconstruct": recipe.reconstructs,
        "measure": spec.get("calibration") is not None,
        "prove": spec["output"]["format"] in ("safetensors", "compressed-tensors", "pt2"),
    }
    return [stage for stage in _STAGES if wanted.get(stage, True)]


def by_thumb(spec: dict, nbytes: int) -> dict[str, float]:
    """Seconds by stage, of an input of `nbytes`, where nothing like it was measured."""
    steps = spec["recipe"]["steps"]
    compress = sum(speeds.of(step) for step in recipe_of(spec).steps)
    samples = sum(trained["steps"] * trained["batch_size"] for step in steps if (trained := step.get("recover")))
    learned = max((step["steps"] for step in steps if step.get("algorithm") == "autoround"), default=0)
    rates = speeds.STAGES | {"compress": compress, "recover": speeds.TRAIN * samples, "reconstruct": speeds.STAGES["reconstruct"] + speeds.LEARN * learned}
    return {stage: nbytes * rates[stage] + (speeds.PROVE if stage == "prove" else 0) for stage in stages(spec)}


def expected(s: Session, job: Job) -> dict[str, float]:
    """Seconds by stage: those of the owner's recent job that is nearest in size among those of the same recipe and output, else by rule of thumb."""
    rows = s.execute(
        select(Job.timings, Job.input_bytes, Job.spec).where(Job.owner == job.owner, Job.state == SUCCEEDED).order_by(Job.created_at.desc(), Job.id.desc()).limit(RECENT)
    )
    same = [(timings, size) for timings, size, spec in rows if timings and size and all(spec[k] == job.spec[k] for k in ("recipe", "output"))]
    guess = by_thumb(job.spec, job.input_bytes)
    if same and job.input_bytes:
        timings, size = min(same, key=lambda row: abs(math.log(row[1] / job.input_bytes)))
        guess |= {stage: timings.get(stage, 0.0) * job.input_bytes / size for stage in guess}
    return guess


@dataclass
class Forecast:
    """Args: expected: seconds by stage, in the order of the stages. started: when the job was; on the clock of `look`."""

    expected: dict[str, float]
    started: float
    fraction: float = 0.0
    _at: int = 0
    _begun: float = 0.0  # how far the stage was when it was first seen
    _marks: list[tuple[float, float]] = field(default_factory=list)  # (time, fraction of the stage), whenever it went on

    def look(self, stage: str, fraction: float, now: float) -> tuple[float, float]:
        """The fraction of the whole, and the seconds left. A stage that is none of the job's, or lies behind it, is taken for the one at hand."""
        order = list(self.expected)
        if stage in order[self._at + 1 :] or not self._marks:
            self._at = order.index(stage) if stage in order else self._at
            self._begun, self._marks = fraction, [(now, fraction)]
        elif stage == order[self._at] and fraction > self._marks[-1][1] + LEAST:
            self._marks.append((now, fraction))
            while len(self._marks) > MARKS and self._marks[1][0] < now - WINDOW:
                self._marks.pop(0)
        left = self._left(self.expected[order[self._at]], now) + sum(self.expected[later] for later in order[self._at + 1 :])
        spent = now - self.started
        self.fraction = max(self.fraction, spent / (spent + left) if spent + left > 0 else 0.0)
        return self.fraction, left

    def _left(self, guess: float, now: float) -> float:
        """Of the stage at hand. While it says nothing, time goes by: what its pace has it take becomes less, what was guessed too low becomes more."""
        (then, before), (last, done) = self._marks[0], self._marks[-1]
        silent, seen = now - last, done - self._begun
        guessed = max(guess * (1 - done) - silent, silent * (1 - done))
        if done == before:
            return guessed
        paced = max((1 - done) * (last - then) / (done - before) - silent, 0.0)
        trust = min(1.0, seen / SEEN)
        return trust * paced + (1 - trust) * guessed
