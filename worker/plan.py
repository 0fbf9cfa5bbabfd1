"""What is to happen to each tensor: made by `worker.methods.plan`, completed by `prepare`, carried out by `apply`, read by the writers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from app import speeds
from app.targets import Treatment

if TYPE_CHECKING:
    from worker.statistics import Statistics

class Threshold(NamedTuple):
    """Units below `key` go, and the first `ties` that equal it; keys are those of scores of `dtype` (see `worker.kernels.select`)."""

    key: int
    ties: int
    dtype: torch.dtype


class Allotment(NamedTuple):
    """What a tensor may take of the bits that a step has: codes of `num_bits`, a price of `slope` for each bit once it is coded (in the unit of
    `worker.gradient_mapping.sensitivity`), and at most so many `bits` for codes and levels together."""

    num_bits: int
    slope: float
    bits: int


@dataclass
class TensorPlan(Treatment):
    """What happens to one tensor.

    Args:
        scale_dtype: in which scales are stored; None lets the values decide between float16 and float32 (`packed`).
        threshold: of a pruning step with global scope.
        allotment: of a quantization to `avg_bits`.
        statistics: of the gradients, where a step asks for them.
    """

    scale_dtype: torch.dtype | None = None
    threshold: Threshold | None = None
    allotment: Allotment | None = None
    statistics: Statistics | None = None

    @property
    def cost(self) -> float:
        """How long it takes, in seconds on a common core: what tells a job's progress by time and not by bytes."""
        return self.spec.nbytes * (speeds.COPY + sum(speeds.of(s) for s in self.steps))

    @property
    def check_cost(self) -> float:
        """The same, of looking whether the values that are to be changed are finite."""
        return self.spec.nbytes * speeds.CHECK if any(s.method != "lossless" for s in self.steps) else 0

    def matrix(self, t: torch.Tensor) -> torch.Tensor:
        """The tensor as [out, in]: a view, but of experts that are stored [E, in, out]. Experts stand one below another: [E * out, in]."""
        if self.experts is not None:
            return (t.transpose(1, 2) if self.transposed else t).flatten(0, 1)
        return t.T if self.transposed else t.reshape(t.shape[0], -1)

    def each(self, m: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The matrices [out, in] of what is worked on by itself: of every expert, or the one that there is."""
        return m.chunk(self.experts or 1)

    def statistic(self, kind: str) -> torch.Tensor:
        """`absolute` (sum over samples of |g|) or `square` (of g^2) as [out, in], float32."""
        return self.matrix(getattr(self.statistics, kind)(self.spec.name))

    def shaped(self, m: torch.Tensor) -> torch.Tensor:
        """A matrix [out, in] in the tensor's own shape, contiguous."""
        if self.experts is not None:
            m = m.unflatten(0, (self.experts, -1))
            return (m.transpose(1, 2) if self.transposed else m).contiguous()
        return (m.T if self.transposed else m).reshape(self.spec.shape).contiguous()
