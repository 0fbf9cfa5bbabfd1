"""What is to happen to each tensor: made by `worker.methods.plan`, completed by `prepare`, carried out by `apply`, read by the writers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from app.recipe import Quantize, Step
from worker.checkpoint import TensorSpec


class Threshold(NamedTuple):
    """Units below `key` go, and the first `ties` that equal it; keys are those of scores of `dtype` (see `worker.kernels.select`)."""

    key: int
    ties: int
    dtype: torch.dtype


@dataclass
class TensorPlan:
    """What happens to one tensor.

    Args:
        steps: in the recipe's order, resolved for this tensor; empty when it is copied for `reason`.
        transposed: the tensor is stored [in, out] (GPT-2's Conv1D).
        linear: it may be the weight of a Linear layer, changed or not.
        scale_dtype: in which scales are stored; None lets the values decide between float16 and float32 (`packed`).
        notes: what was resolved otherwise than asked.
        threshold: of a pruning step with global scope.
    """

    spec: TensorSpec
    steps: list[Step]
    reason: str | None = None
    transposed: bool = False
    linear: bool = False
    scale_dtype: torch.dtype | None = None
    notes: tuple[str, ...] = ()
    threshold: Threshold | None = None

    @property
    def quantize(self) -> Quantize | None:
        return next((s for s in self.steps if isinstance(s, Quantize)), None)

    def matrix(self, t: torch.Tensor) -> torch.Tensor:
        """The tensor as [out, in]: a view."""
        return t.T if self.transposed else t.reshape(t.shape[0], -1)

    def shaped(self, m: torch.Tensor) -> torch.Tensor:
        """A matrix [out, in] in the tensor's own shape, contiguous."""
        return (m.T if self.transposed else m).reshape(self.spec.shape).contiguous()
