"""Trained weights as the writer takes them: in the tensor's dtype, with mask or codebook, and with the steps that are still to come."""

from __future__ import annotations

from dataclasses import replace

import torch

from app.recipe import Lossless, Step
from worker.checkpoint import DTYPES
from worker.encoded import Encoded
from worker.methods import METHODS
from worker.plan import TensorPlan
from worker.recovery.coded import Coded
from worker.recovery.weights import Masked, Weight


def encode(plan: TensorPlan, weight: Weight, done: set[str], original: torch.Tensor) -> Encoded:
    """Args:
        done: methods of the recipe that training has carried out; the plan's other steps are carried out here, on the values as they are now.
        original: as it was in the input; a tensor that no step works on and that training did not change stays what it was.

    Returns:
        on the CPU.
    """
    dense = weight.parameter.data.reshape(plan.spec.shape).to(DTYPES[plan.spec.dtype]).cpu()
    moved = all(isinstance(s, Lossless) for s in plan.steps) and not torch.equal(dense, original)
    if moved and "quantize" in done:
        dense = _halved(dense)
    encoded = Encoded(plan.spec, "copied", dense, plan.reason, notes=plan.notes)
    if isinstance(weight, Coded):
        book, kept = weight.codebook()
        mask = plan.shaped(kept) if weight.zeroed else None
        encoded = replace(encoded, action="quantized", reason=None, mask=mask, quantized=book)
    elif isinstance(weight, Masked) and weight.mask is not None:
        encoded = replace(encoded, action="pruned", reason=None, mask=weight.mask.cpu())
    elif moved:
        encoded = replace(encoded, reason="trained by recover; no step works on it")
    for step in _pending(plan, done):
        encoded = METHODS[type(step)](plan, step, encoded)
    return encoded


def _halved(values: torch.Tensor) -> torch.Tensor:
    """What training has moved beside codes (biases, norms) needs no more digits than levels have: those of float16, where it reaches, in its own dtype."""
    half = values.half().to(values.dtype)
    return half if bool(torch.isfinite(half).all()) else values


def _pending(plan: TensorPlan, done: set[str]) -> list[Step]:
    return [s for s in plan.steps if isinstance(s, Lossless) or s.method not in done]
