"""The loss of a batch: distance from the original's outputs, from labels, or the mean of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from worker.kernels.distillation import against_labels, divergence
from worker.recovery.teacher import Teacher
from worker.runnable.runnable import Runnable
from worker.samples.data import Batch, Data

TEMPERATURE = 2.0


@dataclass(frozen=True)
class Objective:
    """Made by `objective`.

    Args:
        terms: `distill`, `labels` or both; their mean is the loss.
    """

    runnable: Runnable
    teacher: Teacher
    terms: tuple[str, ...]

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Scalar, with its graph where gradients are on."""
        output, task = self.runnable.forward(batch), self.runnable.task
        losses = []
        if "distill" in self.terms:
            losses.append(divergence(output, self.teacher.says(batch), task, batch.mask, TEMPERATURE))
        if "labels" in self.terms:
            labels = batch.inputs["input_ids"] if task == "causal-lm" else batch.labels
            losses.append(against_labels(output, labels, task, batch.mask))
        return torch.stack(losses).mean()

    @torch.no_grad()
    def over(self, data: Data, positions: list[int], size: int, device: torch.device) -> float:
        """Mean over samples."""
        total = 0.0
        for start in range(0, len(positions), size):
            batch = data.batch(positions[start : start + size]).to(device)
            total += float(self(batch)) * len(batch)
        return total / max(1, len(positions))


def terms(loss: str, labelled: bool) -> tuple[str, ...]:
    """Of the field `loss`: `auto` listens to labels too where there are any."""
    return {"distill": ("distill",), "labels": ("labels",), "both": ("distill", "labels"), "auto": ("distill", "labels") if labelled else ("distill",)}[loss]


