"""Pruning by magnitude or by gradients (`worker.kernels.saliency`), unstructured, N:M, by block and by channel.

What is dropped is exact: k = floor(sparsity * n) of n units, the lowest first, ties by tensor name and flat index. A unit is a weight, a block or an
output channel; N:M keeps N of M consecutive inputs and leaves a remainder dense. Scope `row` compares within an output row (or a row of blocks; channels
are one row of units), `tensor` within the tensor, `global` over all tensors of the step, each unit by its own norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch

from app.recipe import Prune
from worker.checkpoint import Checkpoint
from worker.encoded import Encoded
from worker.kernels import native, saliency, select
from worker.methods.registry import method
from worker.plan import TensorPlan, Threshold

_PART = 1 << 20  # elements looked at together


class Ranked(NamedTuple):
    """Matrices of which a threshold is looked for.

    Args:
        dtype: of them.
        shape: [O, I] of each.
        load: gives each [O, I] and its sensitivity, on the device of the job; called when its turn comes, for it may be made anew.
    """

    dtype: torch.dtype
    shape: tuple[int, int]
    load: Callable[[], Iterable[tuple[torch.Tensor, torch.Tensor | None]]]
    count: int = 1


@method(Prune)
def prune(plan: TensorPlan, step: Prune, encoded: Encoded) -> Encoded:
    """Zero what the mask drops; the mask is kept for what comes after."""
    matrix = plan.matrix(encoded.dense)
    kept = keep_mask(matrix, step, plan.threshold, sensitivity(plan, step, matrix.device), plan.experts)
    pruned = native.masked(matrix, kept) if native.takes(matrix) else torch.where(kept, matrix, matrix.new_zeros(()))
    return replace(encoded, action="pruned", reason=None, dense=plan.shaped(pruned), mask=plan.shaped(kept), notes=(*encoded.notes, *_notes(step, matrix)))


def _notes(step: Prune, matrix: torch.Tensor) -> list[str]:
    kind, _, m = step.structure
    if kind == "n:m" and matrix.shape[1] % m:
        return [f"{matrix.shape[1]} inputs are no multiple of {m}: the last {matrix.shape[1] % m} stay dense"]
    return []


def by_magnitude(plan: TensorPlan, step: Prune) -> Prune:
    """The step for one tensor: by magnitude where no gradient reaches it, since nothing but position would rank its weights. A global scope compares
    tensors with each other and stays as it is: such a tensor goes first."""
    if not _within(step) or not step.needs_gradients:
        return step
    without = [i for i, square in enumerate(plan.each(plan.statistic("square"))) if not bool(square.any())]
    if not without or len(without) < (plan.experts or 1):
        if without:
            plan.notes = (*plan.notes, f"no gradient of 16 tokens or more reaches experts {some(without)}: these are pruned by magnitude, not by {step.saliency}")
        return step
    plan.notes = (*plan.notes, f"no gradient reaches it: pruned by magnitude, not by {step.saliency}")
    return step.model_copy(update={"saliency": "magnitude"})


def _within(step: Prune) -> bool:
    """Whether nothing outside of a matrix competes with its weights."""
    return step.scope != "global" or step.structure[0] == "n:m"


def some(numbers: list[int]) -> str:
    """The first of them, for people."""
    return ", ".join(map(str, numbers[:8])) + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")


def sensitivity(plan: TensorPlan, step: Prune, device: torch.device) -> torch.Tensor | None:
    """The statistic of the gradients that a saliency is made of, [O, I] on `device`; None for magnitude."""
    kind = saliency.statistic(step.saliency, step.norm)
    return None if kind is None else plan.statistic(kind).to(device)


def keep_mask(matrix: torch.Tensor, step: Prune, threshold: Threshold | None = None, g: torch.Tensor | None = None, experts: int | None = None) -> torch.Tensor:
    """bool [O, I], True where a weight stays.

    Args:
        threshold: of a global scope, as `prepare` found it; a tensor scope finds its own.
        g: see `sensitivity`, [O, I].
        experts: it is the matrices of so many, one below another, each of which is pruned for itself.
    """
    if experts is not None:
        return torch.cat(list(_each_mask(matrix, step, threshold, g, experts)))
    kind, a, b = step.structure
    if kind == "n:m":
        return _joined([keep_n_of_m(s, a, b) for s in _weights(matrix, g, step)])
    if step.scope == "row":
        dropped = _joined([select.lowest_per_row(s, math.floor(step.sparsity * s.shape[1])) for s in units(matrix, step, g)])
    else:
        threshold = threshold or _threshold([Ranked(matrix.dtype, tuple(matrix.shape), lambda: [(matrix, g)])], step)
        dropped = _joined(list(select.lowest(units(matrix, step, g), threshold.key, threshold.ties, threshold.dtype)))
    if kind == "channel":
        return ~dropped.reshape(-1, 1).expand(matrix.shape)
    return (dropped if kind == "unstructured" else saliency.spread(dropped, a, b, matrix.shape)).logical_not_()


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _each_mask(matrix: torch.Tensor, step: Prune, threshold: Threshold | None, g: torch.Tensor | None, experts: int) -> Iterator[torch.Tensor]:
    plain = step.model_copy(update={"saliency": "magnitude"})
    for one, of in zip(matrix.chunk(experts), [None] * experts if g is None else g.chunk(experts), strict=True):
        ranked = of is None or not _within(step) or bool(of.any())
        yield keep_mask(one, step if ranked else plain, threshold, of if ranked else None)
        if threshold is not None and threshold.ties:
            threshold = threshold._replace(ties=threshold.ties - min(threshold.ties, _equal(threshold, one, step, of)))


def _equal(threshold: Threshold, matrix: torch.Tensor, step: Prune, g: torch.Tensor | None) -> int:
    """How many units are as good as the threshold."""
    parts = (part for s in units(matrix, step, g) for part in s.split(max(1, _PART // max(1, s.shape[1]))))  # keys take 8 bytes each
    return sum(int((select.keys(part, threshold.dtype) == threshold.key).sum()) for part in parts)


def _weights(matrix: torch.Tensor, g: torch.Tensor | None, step: Prune) -> Iterator[torch.Tensor]:
    """Scores of single weights, in pieces of rows where they take memory."""
    free = step.saliency == "magnitude" and native.takes(matrix)
    rows = max(1, matrix.shape[0] if free else _PART // max(1, matrix.shape[1]))
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


def _threshold(matrices: list[Ranked], step: Prune) -> Threshold:
    """The one threshold for the units of all matrices together; `ties` are those of all."""
    single = step.structure[0] == "unstructured" and step.saliency == "magnitude" and all(r.dtype != torch.float64 for r in matrices)
    dtype = torch.float32 if single else torch.float64

    def scores() -> Iterator[torch.Tensor]:
        return (s for r in matrices for m, g in r.load() for s in units(m, step, g))

    k = math.floor(step.sparsity * sum(r.count * _unit_count(r.shape, step) for r in matrices))
    return Threshold(*(select.threshold(scores, k, dtype) if k else (0, 0)), dtype)


def _unit_count(shape: tuple[int, int], step: Prune) -> int:
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
    matrices = [_ranked(checkpoint, step, plan, device) for plan in chosen]
    found = _threshold(matrices, step)
    left = found.ties
    for plan, ranked in zip(chosen, matrices, strict=True):
        here = min(left, sum(_equal(found, m, step, g) for m, g in ranked.load())) if left else 0
        left -= here
        plan.threshold = found._replace(ties=here)


def _ranked(checkpoint: Checkpoint, step: Prune, plan: TensorPlan, device: torch.device) -> Ranked:
    def load() -> Iterable[tuple[torch.Tensor, torch.Tensor | None]]:
        each, g = plan.each(plan.matrix(checkpoint.read(plan.spec.name)).to(device)), sensitivity(plan, step, device)
        return zip(each, [None] * len(each) if g is None else plan.each(g), strict=True)

    (rows, columns), count = plan.matrix_shape, plan.experts or 1
    return Ranked(checkpoint.read(plan.spec.name).dtype, (rows // count, columns), load, count)
