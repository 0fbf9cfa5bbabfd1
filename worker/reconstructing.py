"""The child that goes through a model block by block (`worker.reconstruction`), then writes what came of it as `worker.pipeline` does.

    spec["beside"]   calibration   folder: the samples
                     statistics    of the gradients, where another step asks for them
                     resume        folder of what an earlier attempt has finished, or none
    out/resume/NNNNN.safetensors   what is finished, a file for each stage
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from torch import nn

from app.recipe import Quantize, Recipe
from worker import __main__, pipeline
from worker.calibration import batched
from worker.checkpoint import Checkpoint
from worker.devices import CPU
from worker.encoded import Encoded
from worker.methods import METHODS
from worker.moments import Moments
from worker.plan import TensorPlan
from worker.progress import Emit, Progress
from worker.reconstruction import finished
from worker.reconstruction.course import Stage, stages
from worker.reconstruction.descent import Passage
from worker.reconstruction.learning import learn
from worker.reconstruction.solving import Start, begin, solve
from worker.reconstruction.walk import Values, Walk
from worker.runnable import open_runnable
from worker.runnable.stacks import unstack
from worker.samples import fit, read

RESUME = "resume"
_SEEN, _LEARNED = (4096, 64), (2048, 8)  # of a batch, padding included: tokens, samples; where rounding is learned, a step's batch
_STEP = 0.2  # of what reconstructs a block: one step that learns its rounding


def child(inp: Path, out: Path, spec: dict, emit: Emit) -> None:
    """As `worker.__main__:run`, for a recipe of which a step reconstructs."""
    __main__.run(inp, out, spec, emit, run)


def run(inp: Path, out: Path, spec: dict, emit: Emit) -> None:
    """Raises: what `worker.pipeline.run` and `Reconstruction.work` raise."""
    pipeline.run(inp, out, spec, emit, Reconstruction(inp, out, spec, emit))


class Reconstruction:
    """See `worker.lossy.ModelWide`.

    Attributes:
        told: for the report.
    """

    section = "reconstruction"

    def __init__(self, inp: Path, out: Path, spec: dict, emit: Emit):
        self.inp, self.out, self.spec, self.emit = inp, out / RESUME, spec, emit
        self.told: dict = {}
        self._files: dict[str, Path] = {}  # where a tensor is
        self._held: dict[str, list[nn.Parameter]] = {}  # what a tensor is in the network: a weight, or one for each of its experts
        self._names: dict[nn.Parameter, str] = {}
        self._recipe = json.dumps(spec["recipe"], sort_keys=True)

    def work(self, checkpoint: Checkpoint, recipe: Recipe, plans: dict[str, TensorPlan], device: torch.device) -> None:
        """Raises:
        InputRefused: not-runnable; what the samples are refused for.
        """
        self._checkpoint, self._plans, self._device = checkpoint, plans, device
        self.out.mkdir(exist_ok=True)
        runnable = open_runnable(self.inp, checkpoint, device)
        data = fit(read(Path(self.spec["beside"]["calibration"])), runnable)
        learns = any(isinstance(s, Quantize) and s.learns for s in recipe.steps)
        batches = [data.batch(positions).to(device) for positions in batched(data, *(_LEARNED if learns else _SEEN))]
        changing = {name: p for name, p in runnable.parameters.items() if name in plans and any(s.method in ("prune", "quantize") for s in plans[name].steps)}
        apart = unstack(runnable.module, {p: plans[name].transposed for name, p in changing.items() if plans[name].experts is not None})
        self._held = {name: apart.get(p, [p]) for name, p in changing.items() if p in apart or plans[name].experts is None}
        self._names = {weight: name for name, held in self._held.items() for weight in held}
        course = stages(runnable.module, runnable.forward, batches[0], set(self._names), {w: n for w, n in self._names.items() if plans[n].experts is not None})
        sizes = {id(stage): sum(plans[name].spec.nbytes for name in self._weights(stage)) for stage in course}
        total, samples = sum(sizes.values()), sum(map(len, batches))
        self._steps = max((s.steps for s in recipe.steps if isinstance(s, Quantize) and s.learns), default=0)
        cost = (5 if learns else 4) + _STEP * self._steps  # twice or three times through the samples, and the solution counts as much
        self._progress = Progress(self.emit, "reconstruct", total, cost * total)
        sequential = all(s.sequential for s in recipe.steps if getattr(s, "reconstructs", False))
        walk = Walk(runnable.forward, batches, course, sequential, learns, lambda stage, n: self._progress.add(0, sizes[id(stage)] * n / samples))
        walk.run(self._solve, self._finished)
        self.told = {"samples": samples, "stages": len(course), "sequential": sequential, "layers": sum(len(self._weights(stage)) for stage in course)}

    def encode(self, plan: TensorPlan, original: torch.Tensor) -> Encoded | None:
        """None for a tensor that no step works on."""
        name = plan.spec.name
        if name in self._files:
            encoded = finished.read(self._files[name], plan)
        elif any(getattr(s, "reconstructs", False) for s in plan.steps):
            encoded = solve(plan, original.to(self._device), None).to(original.device)
        else:
            return None
        for step in (s for s in plan.steps if s.method == "lossless"):
            encoded = METHODS[type(step)](plan, step, encoded)
        return encoded

    def _weights(self, stage: Stage) -> dict[str, list[nn.Parameter]]:
        """By name, each once though several layers may share it."""
        return {(name := self._names[layer.weight]): self._held[name] for layer in stage.layers}

    def _solve(self, number: int, stage: Stage, moments: Moments, passages: list[Passage]) -> Values:
        found: dict[str, Encoded] = {}
        starts: dict[str, Start] = {}
        for name, held in self._weights(stage).items():
            plan = self._plans[name]
            seen = moments.of(held[0]) if plan.experts is None else [moments.of(weight) for weight in held]
            encoded, start = begin(plan, self._checkpoint.read(name).to(self._device), seen)
            found[name] = encoded if start else encoded.to(CPU)
            starts |= {name: start} if start else {}
            self._progress.add(plan.spec.nbytes, 2 * plan.spec.nbytes)
        if starts:
            size = sum(encoded.spec.nbytes for encoded in found.values())
            others = placed({name: held for name, held in self._weights(stage).items() if name not in starts}, found, self._plans)
            learned = learn(stage, starts, self._weights(stage), others, passages, self.spec.get("seed", 0) * 1_000_003 + number, lambda: self._progress.add(0, _STEP * size))
            found |= {name: encoded.to(CPU) for name, encoded in learned.items()}
        path = self.out / f"{number:05}.safetensors"
        finished.save(path, found, self._recipe)
        return self._taken(path, stage, found)

    def _finished(self, number: int, stage: Stage) -> Values | None:
        resume = (self.spec.get("beside") or {}).get(RESUME)
        path = self.out / f"{number:05}.safetensors"
        if resume is None or not (earlier := Path(resume) / path.name).is_file():
            return None
        found = finished.load(earlier, {name: self._plans[name] for name in self._weights(stage)}, self._recipe)
        if found is None:
            return None
        shutil.copyfile(earlier, path)
        nbytes = sum(encoded.spec.nbytes for encoded in found.values())
        self._progress.add(nbytes, 2 * nbytes)
        return self._taken(path, stage, found)

    def _taken(self, path: Path, stage: Stage, found: dict[str, Encoded]) -> Values:
        self._files |= dict.fromkeys(found, path)
        return placed(self._weights(stage), found, self._plans)


def placed(held: dict[str, list[nn.Parameter]], found: dict[str, Encoded], plans: dict[str, TensorPlan]) -> dict[nn.Parameter, torch.Tensor]:
    """Values of the network's weights, from those of the tensors that they are of."""
    values: dict[nn.Parameter, torch.Tensor] = {}
    for name, weights in held.items():
        plan, dense = plans[name], found[name].dense
        values |= {weights[0]: dense.reshape(weights[0].shape)} if plan.experts is None else dict(zip(weights, plan.each(plan.matrix(dense)), strict=True))
    return values
