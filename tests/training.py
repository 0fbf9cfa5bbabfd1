"""A small network that has learnt something, the data that it learnt from, and what recovery needs to work on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from app.recipe import Recipe, parse_recipe
from worker.checkpoint import Checkpoint
from worker.formats import open_checkpoint
from worker.methods import plan, prepare
from worker.plan import TensorPlan
from worker.recovering import course, trained
from worker.recovery.objective import Objective, terms
from worker.recovery.refit import Refit
from worker.recovery.teacher import Teacher
from worker.recovery.training import Told, Training
from worker.recovery.weights import Weight
from worker.runnable import Runnable
from worker.samples import Data, Images


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(12, 24)
        self.second = torch.nn.Linear(24, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu())


def data(count: int = 300) -> Data:
    """Three classes, by which of three sums of four numbers is the largest."""
    x = np.random.default_rng(7).normal(size=(count, 12)).astype(np.float32)
    return Data(arrays={"x": x}, labels=x.reshape(count, 3, 4).sum(2).argmax(1))


def learnt(folder: Path) -> Path:
    """A folder with the network's weights."""
    torch.manual_seed(0)
    network, samples = Network(), data()
    x, y = torch.tensor(samples.arrays["x"]), torch.tensor(samples.labels)
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    folder.mkdir(exist_ok=True)
    save_file(network.state_dict(), folder / "model.safetensors")
    return folder


def runnable(checkpoint: Checkpoint) -> Runnable:
    network = Network()
    network.load_state_dict({name: checkpoint.read(name) for name in checkpoint.tensors})
    network.eval().requires_grad_(False)
    return Runnable(network, dict(network.named_parameters()), "classifier", lambda batch: network(batch.inputs["x"]))


@dataclass
class Recovered:
    checkpoint: Checkpoint
    recipe: Recipe
    plans: dict[str, TensorPlan]
    weights: dict[str, Weight]
    told: list[Told]
    forward: Callable


def recover(
    folder: Path,
    steps: list[dict],
    seed: int = 0,
    file: Path | None = None,
    resume: Path | None = None,
    advance: Callable[[], None] = lambda: None,
    samples: Data | None = None,
    fitted: bool = False,
    others: Images | None = None,
) -> Recovered:
    """Train by the steps, with snapshots to `file` and from `resume`; `fitted` by least squares first."""
    checkpoint = open_checkpoint(folder, folder.parent)
    recipe = parse_recipe({"steps": steps})
    plans = plan(checkpoint, recipe, "packed")
    prepare(checkpoint, recipe, plans)
    student, samples = runnable(checkpoint), samples or data()
    weights = trained(student, plans)
    phases = course(recipe, plans, weights, 1)
    teacher = Teacher(runnable(checkpoint), samples, 32)
    teacher.keep(range(len(samples)))
    refit = Refit(teacher.runnable, samples, seed) if fitted else None
    training = Training(samples, weights, torch.device("cpu"), seed, file, resume, advance, others, refit)
    told = training.run([(phase, Objective(student, teacher, terms(phase.recover.loss, True))) for phase in phases])
    return Recovered(checkpoint, recipe, plans, weights, told, student.forward)
