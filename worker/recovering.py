"""The child that compresses and trains: `worker.pipeline` with weights that recovery has had in hand before they are written.

    spec["beside"]   calibration   folder: the samples
                     labels        folder, or none
                     statistics    of the gradients, or none
                     resume        folder with a snapshot of an earlier attempt, or none
    out/resume/training.safetensors   a snapshot, every now and then
"""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

import torch

from app.errors import InputRefused
from app.job_spec import check_loss
from app.recipe import Prune, Quantize, Recipe, Step, narrows
from worker import __main__, pipeline
from worker.calibration import chosen
from worker.checkpoint import Checkpoint
from worker.encoded import Encoded
from worker.narrowing import reached
from worker.plan import TensorPlan
from worker.progress import Emit, Progress
from worker.recovery.objective import Objective, terms
from worker.recovery.outcome import encode
from worker.recovery.phases import Coding, Phase, Pruning, masks
from worker.recovery.refit import Refit
from worker.recovery.teacher import Teacher
from worker.recovery.training import Told, Training, perturbs
from worker.recovery.weights import Masked, Weight
from worker.runnable import Runnable, open_runnable
from worker.samples import Data, Images, Vocabulary, fit, perturbing, read, split

SNAPSHOT = Path("resume", "training.safetensors")


def child(inp: Path, out: Path, spec: dict, emit: Emit) -> None:
    """As `worker.__main__:run`, for a recipe of which a step has `recover`."""
    __main__.run(inp, out, spec, emit, run)


def run(inp: Path, out: Path, spec: dict, emit: Emit) -> None:
    """Raises: what `worker.pipeline.run` and `Recovery.work` raise."""
    pipeline.run(inp, out, spec, emit, Recovery(inp, out, spec, emit))


class Recovery:
    """Trains, and encodes tensor by tensor what came of it. See `worker.lossy.ModelWide`.

    Attributes:
        weights: of what was trained, by name.
        told: of each phase, for the report.
    """

    section = "recovery"

    def __init__(self, inp: Path, out: Path, spec: dict, emit: Emit):
        self.inp, self.out, self.spec, self.emit = inp, out, spec, emit
        self.weights: dict[str, Weight] = {}
        self.done: set[str] = set()
        self.told: list[dict] = []

    def work(self, checkpoint: Checkpoint, recipe: Recipe, plans: dict[str, TensorPlan], device: torch.device) -> None:
        """Raises:
        InputRefused: not-runnable; what the samples are refused for. InvalidJobSpec: see `check_loss`. Diverged.
        """
        beside = {role: Path(path) for role, path in (self.spec.get("beside") or {}).items()}
        student, teacher = (open_runnable(self.inp, c, device) for c in (checkpoint, checkpoint.whole or checkpoint))
        data = fit(read(beside["calibration"], beside.get("labels")), student)
        check_loss(recipe, data.labels is not None, student.task)
        self.weights = trained(student, plans, reached(checkpoint, recipe))
        for step in (s for s in recipe.step(Prune) if not s.recover and not narrows(s)):
            masks(step, worked_on(step, plans, self.weights), self.weights)
        phases = course(recipe, plans, self.weights, len(chosen(data)))
        steps = sum(phase.recover.steps for phase in phases)
        progress = Progress(self.emit, "recover", sum(s.nbytes for s in checkpoint.tensors.values()), steps)
        others = perturbing(student, data)
        seed, places = self.spec.get("seed", 0), {name: s.places for name, s in checkpoint.shrunk.items() if s.cut.side.inner}
        resume = beside["resume"] / SNAPSHOT.name if "resume" in beside else None
        (self.out / SNAPSHOT).parent.mkdir(exist_ok=True)
        refit = Refit(teacher, data, seed, others if any(phase.recover.perturb == "auto" for phase in phases) else None, places)
        training = Training(data, self.weights, device, seed, self.out / SNAPSHOT, resume, lambda: progress.add(0, 1), others, refit)
        said = Teacher(teacher, data, max(phase.recover.batch_size for phase in phases))
        pairs = [(phase, Objective(student, said, terms(phase.recover.loss, data.labels is not None))) for phase in phases]
        said.keep(asked(pairs, data, others))
        self.told = [_report(told, others.says if perturbs(*pair, others) else None) for told, pair in zip(training.run(pairs), pairs, strict=True)]
        self.done = {phase.step.method for phase in phases} | ({"prune"} if recipe.step(Prune) else set())
        (self.out / SNAPSHOT).unlink(missing_ok=True)

    def encode(self, plan: TensorPlan, original: torch.Tensor) -> Encoded | None:
        """None for a tensor that was not trained."""
        weight = self.weights.get(plan.spec.name)
        return None if weight is None else encode(plan, weight, self.done, original)


def _report(told: Told, perturbed: str | None) -> dict:
    before, after = told.before if math.isfinite(told.before) else None, told.after
    losses = {"held_out_loss_before": before, "held_out_loss_fitted": told.fitted, "held_out_loss": after, "best_step": told.best_step}
    return {"method": told.method, "loss": told.loss, "steps": told.steps, "steps_run": told.done, "perturbed": perturbed} | losses | {"stopped": told.stopped, "seconds": round(told.seconds, 3)}


def trained(student: Runnable, plans: dict[str, TensorPlan], others: Collection[str] = ()) -> dict[str, Weight]:
    """What training moves: the tensors that a step changes, those of rank 0 and 1 (biases, norms), and `others`. Their memory becomes their own."""
    found: dict[str, Weight] = {}
    seen = set()
    for name, plan in plans.items():
        parameter = student.parameters.get(name)
        changing = name in others or any(isinstance(s, Prune | Quantize) for s in plan.steps)
        if parameter is None or id(parameter) in seen or not (changing or parameter.ndim < 2) or not plan.spec.nbytes:
            continue
        seen.add(id(parameter))
        parameter.data = parameter.data.clone()
        parameter.requires_grad_(True)
        found[name] = Masked(parameter, plan if changing else None)
    if unused := [name for name, plan in plans.items() if name not in student.parameters and any(getattr(s, "recover", None) for s in plan.steps)]:
        raise InputRefused("not-runnable", f"the network does not use {unused[0]!r}, so training cannot recover it; leave it out with `ignore`")
    return found


def course(recipe: Recipe, plans: dict[str, TensorPlan], weights: dict[str, Weight], samples: int) -> list[Phase]:
    """A phase for every step with `recover`, in the recipe's order.

    Args:
        samples: that the plans' statistics are sums over.
    """
    phases: list[Phase] = []
    for step in (s for s in recipe.steps if isinstance(s, Prune | Quantize) and s.recover):
        own = {} if narrows(step) else worked_on(step, plans, weights)
        phases.append(Pruning(step, own, weights) if isinstance(step, Prune) else Coding(step, own, weights, samples))
    return phases


def worked_on(step: Step, plans: dict[str, TensorPlan], weights: dict[str, Weight]) -> dict[str, TensorPlan]:
    """The plans of what is trained and what a step of the recipe works on."""
    return {name: plan for name, plan in plans.items() if name in weights and any(_is(s, step) for s in plan.steps)}


def _is(own, step) -> bool:
    """Whether a tensor's own step is the recipe's, which may have been resolved otherwise for it."""
    return type(own) is type(step) and own.targets == step.targets and own.ignore == step.ignore


def asked(pairs: list[tuple[Phase, Objective]], data: Data, others: Vocabulary | Images | None) -> list[int]:
    """The samples of which the original is asked again and again: those that are held out, and all that are trained on as they are, where training draws more
    than there are."""
    drawn = max((p.recover.steps * p.recover.batch_size for p, o in pairs if "distill" in o.terms and not perturbs(p, o, others)), default=0)
    fitting, held_out = split(len(data), "fit"), split(len(data), "stop")
    return sorted({*held_out, *(fitting if drawn >= len(fitting) else ())}) if any("distill" in o.terms for _, o in pairs) else []
