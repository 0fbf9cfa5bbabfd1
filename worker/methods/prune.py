"""Magnitude pruning (Han et al., 2015, "Learning both Weights and Connections"), unstructured, N:M, by block and by channel.

What is dropped is exact: k = floor(sparsity * n) of n units, the lowest first, ties by tensor name and flat index. A unit is a weight, a block or an
output channel; N:M keeps N of M consecutive inputs and leaves a remainder dense. Scope `row` compares within an output row (or a row of blocks; channels
are one row of units), `tensor` within the tensor, `global` over all tensors of the step, each unit by its own norm.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch

from app.recipe import Prune
from worker.checkpoint import Checkpoint
from worker.encoded import Encoded
from worker.kernels import saliency, select
from worker.methods.registry import method
from worker.plan import TensorPlan, Threshold

_PART = 1 << 20  # elements looked at together


@method(Prune)
def prune(plan: TensorPlan, step: Prune, encoded: Encoded) -> Encoded:
    """Zero what the mask drops; the mask is kept for what comes after."""
    matrix = plan.matrix(encoded.dense)
    kept = keep_mask(matrix, step, plan.threshold)
    pruned = torch.where(kept, matrix, matrix.new_zeros(()))
    return replace(encoded, action="pruned", reason=None, dense=plan.shaped(pruned), mask=plan.shaped(kept), notes=(*encoded.notes, *_notes(step, matrix)))


def _notes(step: Prune, matrix: torch.Tensor) -> list[str]:
    kind, _, m = step.structure
    if kind == "n:m" and matrix.shape[1] % m:
        return [f"{matrix.shape[1]} inputs are no multiple of {m}: the last {matrix.shape[1] % m} stay dense"]
    return []


def keep_mask(matrix: torch.Tensor, step: Prune, threshold: Threshold | None = None) -> torch.Tensor:
    """bool [O, I], True where a weight stays.

    Args:
        threshold: of a global scope, as `prepare` found it; a tensor scope finds its own.
    """
    kind, a, b = step.structure
    if kind == "n:m":
        return torch.cat([_keep_n_of_m(part, a, b) for part in _parts(matrix)])
    if step.scope == "row":
        dropped = torch.cat([select.lowest_per_row(s, math.floor(step.sparsity * s.shape[1])) for s in units(matrix, step)])
    else:
        threshold = threshold or _threshold([matrix], step, matrix.device)
        dropped = torch.cat(list(select.lowest((s.to(threshold.dtype) for s in units(matrix, step)), threshold.key, threshold.ties)))
    if kind == "channel":
        return ~dropped.reshape(-1, 1).expand(matrix.shape)
    return ~(dropped if kind == "unstructured" else saliency.spread(dropped, a, b, matrix.shape))


def _parts(matrix: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return matrix.split(max(1, _PART // max(1, matrix.shape[1])))


def units(matrix: torch.Tensor, step: Prune) -> Iterator[torch.Tensor]:
    """Scores of what is kept or dropped as one, two-dimensional, in pieces of rows."""
    kind, a, b = step.structure
    if kind == "block":
        yield saliency.blocks(matrix, a, b, step.norm)
    elif kind == "channel":
        yield saliency.channels(matrix, step.norm)[None, :]
    else:
        yield from map(saliency.weights, _parts(matrix))


def _threshold(matrices: list[torch.Tensor], step: Prune, device: torch.device) -> Threshold:
    """The one threshold for the units of all matrices together, each brought to `device` when its turn comes; `ties` are those of all."""
    single = step.structure[0] == "unstructured" and all(m.dtype != torch.float64 for m in matrices)
    dtype = torch.float32 if single else torch.float64

    def scores() -> Iterator[torch.Tensor]:
        return (s.to(dtype) for m in matrices for s in units(m.to(device), step))

    k = math.floor(step.sparsity * sum(_unit_count(m.shape, step) for m in matrices))
    return Threshold(*(select.threshold(scores, k, 8 * dtype.itemsize) if k else (0, 0)), dtype)


def _unit_count(shape: torch.Size, step: Prune) -> int:
    kind, a, b = step.structure
    if kind == "block":
        return -(-shape[0] // a) * -(-shape[1] // b)
    return shape[0] if kind == "channel" else shape[0] * shape[1]


def _keep_n_of_m(part: torch.Tensor, n: int, m: int) -> torch.Tensor:
    whole = part.shape[1] - part.shape[1] % m
    scores = saliency.weights(part[:, :whole]).reshape(-1, m)
    kept = ~select.lowest_per_row(scores, m - n)
    return torch.cat([kept.reshape(part.shape[0], whole), part.new_ones(part.shape[0], part.shape[1] - whole, dtype=torch.bool)], dim=1)


def find_threshold(checkpoint: Checkpoint, step: Prune, plans: dict[str, TensorPlan], device: torch.device) -> None:
    """Find the threshold of a global scope in passes over the mapped tensors, and share its ties out by tensor name."""
    if step.scope != "global" or step.structure[0] == "n:m":
        return
    chosen = [plans[name] for name in sorted(plans) if step in plans[name].steps]
    matrices = {p.spec.name: p.matrix(checkpoint.read(p.spec.name)) for p in chosen}
    found = _threshold(list(matrices.values()), step, device)
    left = found.ties
    for name, matrix in matrices.items():
        here = min(left, sum(int((select.keys(s.to(found.dtype)) == found.key).sum()) for s in units(matrix.to(device), step))) if left else 0
        left -= here
        plans[name].threshold = found._replace(ties=here)
