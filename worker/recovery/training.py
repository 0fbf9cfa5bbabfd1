"""The loop: batches in an order drawn from the seed alone, held-out loss now and then, the best step kept, snapshots by the clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from app.errors import Diverged
from worker.kernels.schedule import cosine, warmed
from worker.recovery import snapshot
from worker.recovery.objective import Objective
from worker.recovery.phases import Phase
from worker.recovery.portions import portions
from worker.recovery.weights import Weight
from worker.samples import Batch, Data, Images, Vocabulary, split

EVALUATIONS, PATIENCE = 20, 8
"""Held-out losses taken once masks or codes are settled, and how many of them may pass without a better one."""
POOL = 8  # batches whose samples are sorted by length together
FIRST, LONGEST, SHARE = 2.0, 30.0, 20
"""Seconds to the first snapshot; they double up to LONGEST, and are never less than SHARE times what writing one takes."""


@dataclass
class Told:
    """Of one phase, for the report. `before` is the held-out loss once its first change is made, before any training, `fitted` that after least squares (None
    where these were not done, or did no good); `stopped` says why it ended."""

    method: str
    loss: list[str]
    steps: int
    done: int = 0
    before: float | None = None
    fitted: float | None = None
    after: float | None = None
    best_step: int = 0
    since: int = 0  # evaluations without a better one
    stopped: str = ""
    seconds: float = 0.0


@dataclass
class Training:
    """Args:
    data: all samples; `fit` is trained on and `stop` is held out.
    weights: by tensor name; phases put others in their places.
    file: of the snapshots; None takes none.
    resume: a snapshot of an earlier attempt.
    advance: called after each step.
    refit: sets by least squares what pruning at once has left, before the first phase.
    others: makes other samples of the data's, for phases that perturb them; None leaves them as they are.
    """

    data: Data
    weights: dict[str, Weight]
    device: torch.device
    seed: int
    file: Path | None = None
    resume: Path | None = None
    advance: Callable[[], None] = lambda: None
    others: Vocabulary | Images | None = None
    refit: Callable[[dict[str, Weight]], None] | None = None
    told: list[Told] = field(default_factory=list)

    def __post_init__(self):
        self._epoch: tuple[int, int] | None = None
        self._order: list[list[int]] = []
        self._wait = FIRST
        self._due = time.monotonic() + FIRST

    def run(self, phases: list[tuple[Phase, Objective]]) -> list[Told]:
        """Carry the phases out, one after another, or go on with the one in which an earlier attempt ended."""
        found = snapshot.load(self.resume, self.device) if self.resume else None
        self.told = [Told(**t) for t in found[2]["told"]] if found else []
        for i, (phase, objective) in enumerate(phases):
            if i < len(self.told) - 1:
                for _ in range(phase.recover.steps):
                    self.advance()
            else:
                resumed, found = found if found and i == len(self.told) - 1 else None, None
                self._phase(i, phase, objective, resumed)
        return self.told

    def _phase(self, i: int, phase: Phase, objective: Objective, resumed: tuple | None) -> None:
        steps, size = phase.recover.steps, phase.recover.batch_size
        fitting, held_out = split(len(self.data), "fit"), split(len(self.data), "stop")
        phase.begin(self.device)
        best = None
        if resumed:
            states, best, _ = resumed
            for name, weight in self.weights.items():
                weight.restore(states[name])
            told = self.told[-1]
            for _ in range(told.done):
                self.advance()
        else:
            told = Told(phase.step.method, list(objective.terms), steps)
            told.before = objective.over(self.data, held_out, size, self.device)
            self.told.append(told)
            if not phase.settles:  # what training makes worse stays as it is
                best = self._judged(told, told.before, None)
                if self.refit and i == 0:
                    best = self._refitted(told, objective, best, size)
        every = max(1, (steps - phase.settles) // EVALUATIONS)
        started = time.monotonic()
        spent = told.seconds
        for t in range(told.done, 0 if told.stopped else steps):
            phase.before(t)
            self._step(phase, objective, self._batch(i, phase, objective, self._drawn(i, fitting, t, size), t), t)
            told.done, told.seconds = t + 1, spent + time.monotonic() - started
            self.advance()
            if told.done == steps or (told.done > phase.settles and (steps - told.done) % every == 0):
                best = self._judged(told, objective.over(self.data, held_out, size, self.device), best)
                if told.since >= PATIENCE:
                    told.stopped = f"no better held-out loss in {PATIENCE} evaluations, {every} steps apart"
                    break
            if self.file and time.monotonic() > self._due:
                self._save(best)
        told.stopped = told.stopped or "all steps done"
        if told.after is None:
            why = f"after {told.done} steps of recover of {told.method} the held-out loss is not finite"
            raise Diverged(f"{why}; choose a learning_rate below {phase.recover.learning_rate:g}")
        for name, state in (best or {}).items():
            self.weights[name].restore(state)
        if self.file:
            self._save(None)

    def _refitted(self, told: Told, objective: Objective, best: snapshot.State | None, size: int) -> snapshot.State | None:
        """Least squares, unless what is held out says that they did no good."""
        self.refit(self.weights)
        best = self._judged(told, objective.over(self.data, split(len(self.data), "stop"), size, self.device), best)
        told.fitted, told.since = (None, 0) if told.since else (told.after, 0)
        for name, state in (best or {}).items():
            self.weights[name].restore(state)
        return best

    def _drawn(self, phase: int, fitting: list[int], t: int, size: int) -> list[int]:
        """Positions of the samples of step t: epoch by epoch, each in an order of its own, of the seed."""
        epoch, at = divmod(t, max(1, len(fitting) // size))
        if self._epoch != (phase, epoch):
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + phase * 100_003 + epoch) % (1 << 63))
            self._epoch, self._order = (phase, epoch), self._shuffled(fitting, size, generator)
        return self._order[at]

    def _shuffled(self, fitting: list[int], size: int, generator: torch.Generator) -> list[list[int]]:
        """Batches, in each of which samples are of about one length, so that little is computed on padding."""
        order = [fitting[i] for i in torch.randperm(len(fitting), generator=generator).tolist()]
        pools = [sorted(order[i : i + POOL * size], key=self.data.length) for i in range(0, len(order), POOL * size)]
        whole = [p for pool in pools for p in pool]
        batches = [whole[i : i + size] for i in range(0, max(1, len(whole) // size) * size, size)]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]

    def _batch(self, i: int, phase: Phase, objective: Objective, positions: list[int], t: int) -> Batch:
        """On the device; every other sample perturbed, where the phase is of those that do that."""
        batch = self.data.batch(positions).to(self.device)
        if not perturbs(phase, objective, self.others):
            return batch
        generator = torch.Generator().manual_seed(((self.seed * 1_000_003 + i) * 1_000_003 + t) % (1 << 63))
        return self.others(batch, list(range(t % 2, len(batch), 2)), generator)

    def _step(self, phase: Phase, objective: Objective, batch: Batch, t: int) -> None:
        for share, part in portions(objective.runnable, batch):
            loss = objective(part)
            (loss if share == 1 else loss * share).backward()
        rate = phase.recover.learning_rate * warmed(t, phase.recover.steps) * cosine(t / phase.recover.steps)
        for weight in self.weights.values():
            if (gradient := weight.parameter.grad) is not None:
                weight.update(torch.nan_to_num_(gradient, 0.0, 0.0, 0.0), rate, phase.penalty(t))
                weight.parameter.grad = None

    def _judged(self, told: Told, held_out: float, best: snapshot.State | None) -> snapshot.State | None:
        if not math.isfinite(held_out) or (told.after is not None and not held_out < told.after):
            told.since += 1
            return best
        told.after, told.best_step, told.since = held_out, told.done, 0
        return {name: {k: t.clone() for k, t in weight.best().items()} for name, weight in self.weights.items()}

    def _save(self, best: snapshot.State | None) -> None:
        began = time.monotonic()
        states = {name: weight.state() for name, weight in self.weights.items()}
        snapshot.save(self.file, states, best, {"told": [asdict(t) for t in self.told]})
        ended = time.monotonic()
        self._wait = min(2 * self._wait, LONGEST)
        self._due = ended + max(self._wait, SHARE * (ended - began))


def perturbs(phase: Phase, objective: Objective, others: Vocabulary | Images | None) -> bool:
    """Whether a phase asks of what is none of the samples: not where labels are heard that say nothing of it."""
    return others is not None and phase.recover.perturb == "auto" and (others.keeps_labels or objective.terms == ("distill",))
