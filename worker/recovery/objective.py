"""The loss of a batch: distance from the original's outputs, from labels, or the mean of both; and, beside outputs that are followed, from the original's
hidden states where the model tells them: a few hundred samples say too little by one embedding each, and enough by every token of every layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from worker.kernels.distillation import against_labels, divergence, strayed
from worker.recovery.portions import portions
from worker.recovery.teacher import Teacher
from worker.runnable.runnable import Features, Runnable
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
        follows = "distill" in self.terms
        own = self.runnable.features(batch) if follows else Features(self.runnable.forward(batch))
        his = self.teacher.says(batch) if follows else None
        loss = self._of_output(own.output, his and his.output, batch)
        return loss + strayed(own.hidden, his.hidden, batch.mask) if his and own.hidden else loss

    def _of_output(self, output: torch.Tensor, teacher: torch.Tensor | None, batch: Batch) -> torch.Tensor:
        task, losses = self.runnable.task, []
        mask = batch.counted(output) if task in ("causal-lm", "seq2seq") else None
        if "distill" in self.terms:
            losses.append(divergence(output, teacher, task, mask, TEMPERATURE))
        if "labels" in self.terms:
            labels = batch.inputs["input_ids"] if task == "causal-lm" else batch.labels
            losses.append(against_labels(output, labels, task, mask))
        return torch.stack(losses).mean()

    @torch.no_grad()
    def over(self, data: Data, positions: list[int], size: int, device: torch.device) -> float:
        """What the loss says of the output alone, for that is what counts in the end: mean over samples."""
        total = 0.0
        for start in range(0, len(positions), size):
            batch = data.batch(positions[start : start + size])
            for share, part in portions(self.runnable, batch):
                part = part.to(device)
                teacher = self.teacher.says(part, hidden=False).output if "distill" in self.terms else None
                total += float(self._of_output(self.runnable.forward(part), teacher, part)) * share * len(batch)
        return total / max(1, len(positions))


def terms(loss: str, labelled: bool) -> tuple[str, ...]:
    """Of the field `loss`: `auto` listens to labels too where there are any."""
    return {"distill": ("distill",), "labels": ("labels",), "both": ("distill", "labels"), "auto": ("distill", "labels") if labelled else ("distill",)}[loss]


