"""Pruning by magnitude or by gradients (`worker.kernels.saliency`), unstructured, N:M, by block and by channel.

What is dropped is exact: k = floor(sparsity * n) of n units, the lowest first, ties by tensor name and flat index. A unit is a weight, a block or an
output channel; N:M keeps N of M consecutive inputs and leaves a remainder dense. Scope `row` compares within an output row (or a row of blocks; channels
are one row of units), `tensor` within the tensor, `global` over all tensors of the step, each unit by its own norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch

from app.recipe import Prune
from worker.checkpoint import Checkpoint
from worker.encoded import Encoded
from worker.kernels import saliency, select
from worker.methods.registry import method
from worker.plan import TensorPlan, Threshold

_PART = 1 << 20  # elements looked at together
Sensitivity = Callable[[], torch.Tensor | None]  # read when its turn comes: it may be made of a gradient in float32


@method(Prune)
def prune(plan: TensorPlan, step: Prune, encoded: Encoded) -> Encoded:
    """Zero what the mask drops; the mask is kept for what comes after."""
    matrix = plan.matrix(encoded.dense)
    kept = keep_mask(matrix, step, plan.threshold, sensitivity(plan, step, matrix.device))
    pruned = torch.where(kept, matrix, matrix.new_zeros(()))
    return replace(encoded, action="pruned", reason=None, dense=plan.shaped(pruned), mask=plan.shaped(kept), notes=(*encoded.notes, *_notes(step, matrix)))


def _notes(step: Prune, matrix: torch.Tensor) -> list[str]:
    kind, _, m = step.structure
    if kind == "n:m" and matrix.shape[1] % m:
        return [f"{matrix.shape[1]} inputs are no multiple of {m}: the last {matrix.shape[1] % m} stay dense"]
    return []


def by_magnitude(plan: TensorPlan, step: Prune) -> Prune:
    """The step for one tensor: by magnitude where no gradient reaches it, since nothing but position would rank its weights. A global scope compares
    tensors with each other and stays as it is: such a tensor goes first."""
    within = step.scope != "global" or step.structure[0] == "n:m"
    if not within or not step.needs_gradients or bool(plan.statistic("square").any()):
        return step
    plan.notes = (*plan.notes, f"no gradient reaches it: pruned by magnitude, not by {step.saliency}")
    return step.model_copy(update={"saliency": "magnitude"})


def sensitivity(plan: TensorPlan, step: Prune, device: torch.device) -> torch.Tensor | None:
    """The statistic of the gradients that a saliency is made of, [O, I] on `device`; None for magnitude."""
    kind = saliency.statistic(step.saliency, step.norm)
    return None if kind is None else plan.statistic(kind).to(device)


def keep_mask(matrix: torch.Tensor, step: Prune, threshold: Threshold | None = None, g: torch.Tensor | None = None) -> torch.Tensor:
    """bool [O, I], True where a weight stays.

    Args:
        threshold: of a global scope, as `prepare` found it; a tensor scope finds its own.
        g: see `sensitivity`, [O, I].
    """
    kind, a, b = step.structure
    if kind == "n:m":
        return torch.cat([keep_n_of_m(s, a, b) for s in _weights(matrix, g, step)])
    if step.scope == "row":
        dropped = torch.cat([select.lowest_per_row(s, math.floor(step.sparsity * s.shape[1])) for s in units(matrix, step, g)])
    else:
        threshold = threshold or _threshold([(matrix, lambda: g)], step, matrix.device)
        dropped = torch.cat(list(select.lowest((s.to(threshold.dtype) for s in units(matrix, step, g)), threshold.key, threshold.ties)))
    if kind == "channel":
        return ~dropped.reshape(-1, 1).expand(matrix.shape)
    return ~(dropped if kind == "unstructured" else saliency.spread(dropped, a, b, matrix.shape))


def _weights(matrix: torch.Tensor, g: torch.Tensor | None, step: Prune) -> Iterator[torch.Tensor]:
    """Scores of single weights, in pieces of rows."""
    rows = max(1, _PART // max(1, matrix.shape[1]))
    parts = matrix.split(rows)
    for part, of in zip(parts, [None] * len(parts) if g is None else g.split(rows), strict=True):
        yield saliency.weights(part, of, step.saliency, step.norm)


def units(matrix: torch.Tensor, step: Prune, g: torch.Tensor | None = None) -> Iterator[torch.Tensor]:
    """Scores of what is kept or dropped as one, two-dimensional, in pieces of rows."""
    kind, a, b = step.structure
    if kind == "block":
        yield saliency.blocks(matrix, g, step.saliency, step.norm, a, b)
    elif kind == "channel":
        yield saliency.channels(matrix, g, step.saliency, step.norm)[None, :]
    else:
        yield from _weights(matrix, g, step)


def _threshold(matrices: list[tuple[torch.Tensor, Sensitivity]], step: Prune, device: torch.device) -> Threshold:
    """The one threshold for the units of all matrices together, each brought to `device` when its turn comes; `ties` are those of all."""
    single = step.structure[0] == "unstructured" and step.saliency == "magnitude" and all(m.dtype != torch.float64 for m, _ in matrices)
    dtype = torch.float32 if single else torch.float64

    def scores() -> Iterator[torch.Tensor]:
        return (s.to(dtype) for m, g in matrices for s in units(m.to(device), step, g()))

    k = math.floor(step.sparsity * sum(_unit_count(m.shape, step) for m, _ in matrices))
    return Threshold(*(select.threshold(scores, k, 8 * dtype.itemsize) if k else (0, 0)), dtype)


def _unit_count(shape: torch.Size, step: Prune) -> int:
    kind, a, b = step.structure
    if kind == "block":
        return -(-shape[0] // a) * -(-shape[1] // b)
    return shape[0] if kind == "channel" else shape[0] * shape[1]


def keep_n_of_m(scores: torch.Tensor, n: int, m: int) -> torch.Tensor:
    """bool like scores [R, I]: the n highest of m consecutive inputs, and a remainder."""
    whole = scores.shape[1] - scores.shape[1] % m
    kept = ~select.lowest_per_row(scores[:, :whole].reshape(-1, m), m - n)
    return torch.cat([kept.reshape(scores.shape[0], whole), kept.new_ones(scores.shape[0], scores.shape[1] - whole)], dim=1)


def find_threshold(checkpoint: Checkpoint, step: Prune, plans: dict[str, TensorPlan], device: torch.device) -> None:
    """Find the threshold of a global scope in passes over the mapped tensors, and share its ties out by tensor name."""
    if step.scope != "global" or step.structure[0] == "n:m":
        return
    chosen = [plans[name] for name in sorted(plans) if step in plans[name].steps]
    matrices = [(p.matrix(checkpoint.read(p.spec.name)), partial(sensitivity, p, step, device)) for p in chosen]
    found = _threshold(matrices, step, device)
    left = found.ties
    for plan, (matrix, g) in zip(chosen, matrices, strict=True):
        here = min(left, sum(int((select.keys(s.to(found.dtype)) == found.key).sum()) for s in units(matrix.to(device), step, g()))) if left else 0
        left -= here
        plan.threshold = found._replace(ties=here)
