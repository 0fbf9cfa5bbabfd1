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

from app.recipe import Recipe
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
from worker.reconstruction.solving import solve
from worker.reconstruction.walk import Values, Walk
from worker.runnable import open_runnable
from worker.runnable.stacks import unstack
from worker.samples import fit, read

RESUME = "resume"
_TOKENS, _ROWS = 4096, 64  # of a batch, padding included: tokens, samples


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
        batches = [data.batch(positions).to(device) for positions in batched(data, _TOKENS, _ROWS)]
        changing = {name: p for name, p in runnable.parameters.items() if name in plans and any(s.method in ("prune", "quantize") for s in plans[name].steps)}
        apart = unstack(runnable.module, {p: plans[name].transposed for name, p in changing.items() if plans[name].experts is not None})
        self._held = {name: apart.get(p, [p]) for name, p in changing.items()}
        self._names = {weight: name for name, held in self._held.items() for weight in held}
        course = stages(runnable.module, runnable.forward, batches[0], set(self._names), {w: n for w, n in self._names.items() if plans[n].experts is not None})
        sizes = {id(stage): sum(plans[name].spec.nbytes for name in self._weights(stage)) for stage in course}
        total, samples = sum(sizes.values()), sum(map(len, batches))
        self._progress = Progress(self.emit, "reconstruct", total, 4 * total)  # twice through the samples, and the solution counts as much
        sequential = all(s.sequential for s in recipe.steps if getattr(s, "reconstructs", False))
        walk = Walk(runnable.forward, batches, course, sequential, lambda stage, n: self._progress.add(0, sizes[id(stage)] * n / samples))
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

    def _solve(self, number: int, stage: Stage, moments: Moments) -> Values:
        found: dict[str, Encoded] = {}
        for name, held in self._weights(stage).items():
            plan = self._plans[name]
            seen = moments.of(held[0]) if plan.experts is None else [moments.of(weight) for weight in held]
            found[name] = solve(plan, self._checkpoint.read(name).to(self._device), seen).to(CPU)
            self._progress.add(plan.spec.nbytes, 2 * plan.spec.nbytes)
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
        values: dict[nn.Parameter, torch.Tensor] = {}
        for name, held in self._weights(stage).items():
            plan, dense = self._plans[name], found[name].dense
            values |= {held[0]: dense.reshape(held[0].shape)} if plan.experts is None else dict(zip(held, plan.each(plan.matrix(dense)), strict=True))
        return values
