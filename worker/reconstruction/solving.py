"""One matrix through the steps of its plan, where the second moments of its inputs are known."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from app.recipe import Prune, Quantize, Step
from worker.encoded import Encoded
from worker.kernels import compensation, least_squares, select
from worker.methods import METHODS
from worker.methods.prune import keep_n_of_m
from worker.methods.quantize import decoded
from worker.plan import TensorPlan
from worker.reconstruction.grids import Columns, Ordered
from worker.moments import Sum

FEWEST = 16
"""Tokens (samples, patches) that have to reach a layer, such as an expert that few are sent to."""
_ITERATIONS = 32


def solve(plan: TensorPlan, tensor: torch.Tensor, seen: Sum | None) -> Encoded:
    """The tensor after its steps; lossless ones are left for later.

    Args:
        tensor: as it was in the input, on the device of the job.
        seen: of what goes into its layer; None where that never ran. Below `FEWEST` tokens its steps go by the weights alone.
    """
    known = seen is not None and bool(seen.gram.diagonal().any()) and bool(torch.isfinite(seen.gram).all())
    tokens = seen.tokens if known else 0
    gram = seen.gram if tokens >= FEWEST else None
    encoded = Encoded(plan.spec, "copied", tensor, plan.reason, notes=plan.notes)
    steps = [s for s in plan.steps if isinstance(s, Prune | Quantize)]
    while steps:
        step = steps.pop(0)
        if not getattr(step, "reconstructs", False):
            encoded = METHODS[type(step)](plan, step, encoded)
        elif gram is None:
            encoded = _without_data(plan, step, encoded, tokens)
        elif isinstance(step, Quantize):
            encoded = _solved(plan, None, step, encoded, gram)
        elif step.saliency == "wanda":
            encoded = _wanda(plan, step, encoded, gram)
        else:
            joint = steps.pop(0) if steps and isinstance(steps[0], Quantize) and steps[0].reconstructs and not steps[0].activation_order else None
            encoded = _solved(plan, step, joint, encoded, gram)
    return encoded


def _without_data(plan: TensorPlan, step: Step, encoded: Encoded, tokens: int) -> Encoded:
    reach = f"{tokens} tokens of the calibration data reach its layer, fewer than {FEWEST}" if tokens else "what goes into its layer is not known (nothing reaches it, it is beyond float32, or the layer is of a kind that is not watched)"
    note = f"{reach}: " + ("pruned by magnitude" if isinstance(step, Prune) else "rounded to the nearest")
    plain = {"saliency": "magnitude", "damping": None, "sequential": None} if isinstance(step, Prune) else {"algorithm": "rtn", "damping": None, "activation_order": None, "sequential": None}
    encoded = METHODS[type(step)](plan, step.model_copy(update=plain), encoded)
    return replace(encoded, notes=(*encoded.notes, note))


def _wanda(plan: TensorPlan, step: Prune, encoded: Encoded, gram: torch.Tensor) -> Encoded:
    """Sun et al., 2024, "A Simple and Effective Pruning Approach for Large Language Models": |w_ij| |x_j|."""
    matrix = plan.matrix(encoded.dense)
    dropped = dropping(step)(matrix.float().abs() * gram.diagonal().sqrt(), 0)
    pruned = torch.where(dropped, matrix.new_zeros(()), matrix)
    return replace(encoded, action="pruned", reason=None, dense=plan.shaped(pruned), mask=plan.shaped(~dropped))


def _solved(plan: TensorPlan, prune: Prune | None, quantize: Quantize | None, encoded: Encoded, gram: torch.Tensor) -> Encoded:
    """SparseGPT, GPTQ, or both in one pass. A mask that is there already is kept."""
    matrix = plan.matrix(encoded.dense)
    w, weight = matrix.float(), gram.diagonal().clone()
    asked = (quantize or prune).damping
    kept = None if encoded.mask is None else plan.matrix(encoded.mask)
    grid = Columns(matrix, quantize, plan.scale_dtype, prune is not None) if quantize else None
    order = torch.argsort(weight, descending=True, stable=True) if quantize and quantize.activation_order else None
    if order is None:
        upper, damping = compensation.factor(gram, asked)
        together = prune.structure[2] if prune and prune.structure[0] == "n:m" else 1
        found = compensation.solve(w, upper, grid, dropping(prune) if prune else None, kept, weight, together)
        codes, kept = found.codes, found.kept
        values = found.values if grid else least_squares.solve(w, kept, gram, w @ gram, damping, _ITERATIONS)
    else:
        upper, damping = compensation.factor(gram[order][:, order], asked)
        found = compensation.solve(w[:, order], upper, Ordered(grid, order, w, weight), None, None if kept is None else kept[:, order], weight[order])
        back = torch.argsort(order)
        codes, values = found.codes[:, back], found.values[:, back]
    quantized = grid.quantized(codes, plan.transposed) if grid else None
    values = decoded(quantized, matrix.dtype) if quantized else _within(values, matrix.dtype)
    notes = [f"output error {math.sqrt(compensation.output_error(w, values.float(), gram)):.4f} on the calibration data"]
    if damping != asked:
        notes.append(f"damping {damping:g}: the inputs are nearly dependent")
    mask = None if kept is None else plan.shaped(kept)
    action = "quantized" if quantized else "pruned"
    return replace(encoded, action=action, reason=None, dense=plan.shaped(values), mask=mask, quantized=quantized, notes=(*encoded.notes, *notes))


def _within(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What makes up for an error stays finite in the tensor's dtype."""
    info = torch.finfo(dtype)
    return values.clamp(max(info.min, torch.finfo(torch.float32).min), min(info.max, torch.finfo(torch.float32).max)).to(dtype)


def dropping(step: Prune) -> compensation.Choose:
    """The lowest scores of each block of inputs, as many as its share; in all exactly floor(sparsity * n), by row or in the matrix."""
    kind, n, m = step.structure

    def choose(scores: torch.Tensor, start: int) -> torch.Tensor:
        if kind == "n:m":
            return ~keep_n_of_m(scores, n, m)
        rows, end = 1 if step.scope == "row" else scores.shape[0], start + scores.shape[1]
        count = math.floor(step.sparsity * rows * end) - math.floor(step.sparsity * rows * start)
        flat = scores if step.scope == "row" else scores.reshape(1, -1)
        return select.lowest_per_row(flat, count).reshape(scores.shape)

    return choose
