"""A matrix, or those of all experts of a layer, through the steps of its plan, where the second moments of its inputs are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from app.recipe import Prune, Quantize, Step
from worker.encoded import Encoded, Grid, Quantized
from worker.kernels import compensation, input_scaling, least_squares, select
from worker.methods import METHODS
from worker.methods.prune import keep_mask, keep_n_of_m, some
from worker.methods.quantize import decoded, rounded
from worker.moments import Sum
from worker.plan import TensorPlan
from worker.reconstruction.grids import Columns, Ordered
from worker.reconstruction.offsets import Offsets
from worker.schemes import Parameters, Scheme, assembled, joined, scheme_of, single

FEWEST = 16
"""Tokens (samples, patches) that have to reach a layer, such as an expert that few are sent to."""
_ITERATIONS = 32
_ERROR = "output error"


@dataclass(frozen=True)
class Start:
    """From where the rounding of a tensor is learned.

    Args:
        encoded: as it is rounded at first.
        w: [O, I] as it was before, of all experts one below another.
        parts: of each matrix.
        grams: of the inputs of each; None where it is left as it is.
    """

    plan: TensorPlan
    step: Quantize
    scheme: Scheme
    encoded: Encoded
    w: torch.Tensor
    parts: list[_Part]
    grams: list[torch.Tensor | None]

    def offsets(self) -> list[Offsets | None]:
        """Of each matrix."""
        each = zip(self.plan.each(self.w), self.parts, self.grams, strict=True)
        return [Offsets(_left(w, p.kept).float(), p.parameters, self.scheme, p.kept) if gram is not None else None for w, p, gram in each]

    def learned(self, offsets: list[Offsets | None], note: str) -> Encoded:
        """Args: note: what came of it."""
        parts = [p if o is None else replace(p, codes=self.scheme.stored(o.codes()), parameters=o.parameters()) for p, o in zip(self.parts, offsets, strict=True)]
        quantized = _assembled(self.plan, self.step, self.scheme, parts)
        values = decoded(quantized, self.w.dtype)
        told = _told(self.plan, self.w, values, parts, self.grams, None)
        notes = tuple(n for n in self.encoded.notes if not n.startswith(_ERROR))
        return replace(self.encoded, dense=self.plan.shaped(values), quantized=quantized, notes=(*notes, *told, note))


def solve(plan: TensorPlan, tensor: torch.Tensor, seen: Sum | None | Sequence[Sum | None]) -> Encoded:
    """`begin`, where nothing is learned after it."""
    return begin(plan, tensor, seen)[0]


def begin(plan: TensorPlan, tensor: torch.Tensor, seen: Sum | None | Sequence[Sum | None]) -> tuple[Encoded, Start | None]:
    """The tensor after its steps; lossless ones are left for later. Of rounding that is to be learned, where that starts.

    Args:
        tensor: as it was in the input, on the device of the job.
        seen: of what goes into its layer, or into that of each of its experts; None where that never ran. Below `FEWEST` tokens its steps go by the weights alone.
    """
    known = [_known(one) for one in (seen if isinstance(seen, Sequence) else [seen] * (plan.experts or 1))]
    tokens, grams = [t for _, t in known], [gram for gram, _ in known]
    encoded, start = Encoded(plan.spec, "copied", tensor, plan.reason, notes=plan.notes), None
    steps = [s for s in plan.steps if isinstance(s, Prune | Quantize)]
    while steps:
        step = steps.pop(0)
        if not getattr(step, "reconstructs", False):
            encoded = METHODS[type(step)](plan, step, encoded)
        elif all(gram is None for gram in grams):
            encoded = _without_data(plan, step, encoded, max(tokens))
        elif isinstance(step, Quantize):
            encoded, start = _solved(plan, None, step, encoded, grams)
        else:
            joins = step.saliency == "sparsegpt" and steps and isinstance(steps[0], Quantize) and steps[0].algorithm == "gptq" and not steps[0].activation_order
            encoded, start = _solved(plan, step, steps.pop(0) if joins else None, encoded, grams)
    return encoded, start


def _known(seen: Sum | None) -> tuple[torch.Tensor | None, int]:
    """X^T X, where enough is known, and of how many tokens."""
    known = seen is not None and bool(seen.gram.diagonal().any()) and bool(torch.isfinite(seen.gram).all())
    return (seen.gram if seen.tokens >= FEWEST else None, seen.tokens) if known else (None, 0)


def _without_data(plan: TensorPlan, step: Step, encoded: Encoded, tokens: int) -> Encoded:
    whose = "its layer" if plan.experts is None else "the layer of any of its experts"
    unknown = f"what goes into {whose} is not known (nothing reaches it, it is beyond float32, or the layer is of a kind that is not watched)"
    reach = f"{tokens} tokens of the calibration data reach {whose}, fewer than {FEWEST}" if tokens else unknown
    encoded = METHODS[type(step)](plan, _plain(step), encoded)
    return replace(encoded, notes=(*encoded.notes, f"{reach}: {_by_weights(step)}"))


def _plain(step: Step) -> Step:
    """The same by the weights alone."""
    if isinstance(step, Prune):
        return step.model_copy(update={"saliency": "magnitude", "damping": None, "sequential": None})
    return step.model_copy(update={"algorithm": "rtn", "damping": None, "activation_order": None, "sequential": None, "steps": None})


def _by_weights(step: Step) -> str:
    return "pruned by magnitude" if isinstance(step, Prune) else "rounded to the nearest"


@dataclass(frozen=True)
class _Part:
    """Of one matrix [O, I]: `values` in its dtype, or `codes` as they are stored and what they mean; `kept` where it is pruned; `damping` where there was any;
    `inputs` [I] by which values are multiplied and the power of their size that they are, where inputs are scaled."""

    values: torch.Tensor | None
    kept: torch.Tensor | None
    codes: torch.Tensor | None = None
    parameters: Parameters | None = None
    damping: float | None = None
    inputs: torch.Tensor | None = None
    alpha: float = 0.0


def _solved(plan: TensorPlan, prune: Prune | None, quantize: Quantize | None, encoded: Encoded, grams: list[torch.Tensor | None]) -> tuple[Encoded, Start | None]:
    """Wanda, SparseGPT, GPTQ, or the last two in one pass, of each matrix, or the nearest levels from which rounding is learned. A mask that is there already is
    kept."""
    matrix = plan.matrix(encoded.dense)
    scheme = scheme_of(quantize, matrix, plan.scale_dtype) if quantize else None
    if scheme and prune and scheme.offset == "float":
        scheme = replace(scheme, zero=True)  # there may be no 0 yet
    masks = [None] * len(grams) if encoded.mask is None else plan.each(plan.matrix(encoded.mask))
    parts = [_one(w, prune, quantize, scheme, kept, gram) for w, kept, gram in zip(plan.each(matrix), masks, grams, strict=True)]
    if quantize:
        quantized = _assembled(plan, quantize, scheme, parts)
        values = decoded(quantized, matrix.dtype)
    else:
        quantized, values = None, torch.cat([p.values for p in parts])
    mask = None if parts[0].kept is None else plan.shaped(torch.cat([p.kept for p in parts]))
    notes = [] if prune and prune.saliency == "wanda" else _told(plan, matrix, values, parts, grams, (quantize or prune).damping)
    if few := [i for i, gram in enumerate(grams) if gram is None]:
        how = " and ".join(_by_weights(s) for s in (prune, quantize) if s)
        notes.append(f"fewer than {FEWEST} tokens of the calibration data reach {len(few)} of {len(grams)} experts ({some(few)}): {how}")
    action = "quantized" if quantized else "pruned"
    encoded = replace(encoded, action=action, reason=None, dense=plan.shaped(values), mask=mask, quantized=quantized, notes=(*encoded.notes, *notes))
    return encoded, Start(plan, quantize, scheme, encoded, matrix, parts, grams) if quantize and quantize.learns else None


def _assembled(plan: TensorPlan, step: Quantize, scheme: Scheme, parts: list[_Part]) -> Quantized | Grid:
    codes, scaled = torch.cat([p.codes for p in parts]), any(p.inputs is not None for p in parts)
    inputs = torch.stack([torch.ones_like(codes[0], dtype=torch.float32) if p.inputs is None else p.inputs for p in parts]) if scaled else None
    return assembled(scheme, codes, joined([p.parameters for p in parts], 0), step, plan.transposed, plan.experts, inputs)


def _left(w: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
    return w if kept is None else torch.where(kept, w, w.new_zeros(()))


def _told(plan: TensorPlan, matrix: torch.Tensor, values: torch.Tensor, parts: list[_Part], grams: list[torch.Tensor | None], asked: float | None) -> list[str]:
    each = zip(plan.each(matrix), plan.each(values), grams, strict=True)
    errors = {i: math.sqrt(compensation.output_error(w.float(), q.float(), gram)) for i, (w, q, gram) in enumerate(each) if gram is not None}
    worst = max(errors, key=errors.get)
    if plan.experts is None:
        notes = [f"{_ERROR} {errors[worst]:.4f} on the calibration data"]
    else:
        notes = [f"{_ERROR} {sum(errors.values()) / len(errors):.4f} on the calibration data in the mean over experts, {errors[worst]:.4f} of expert {worst}"]
    if (most := max((p.damping for p in parts if p.damping is not None), default=asked)) != asked:
        notes.append(f"damping {most:g}: the inputs are nearly dependent")
    if any(p.alpha for p in parts):
        notes.append(f"inputs are scaled by their size to the power of {', '.join(f'{p.alpha:g}' for p in parts)}")
    return notes


def _one(matrix: torch.Tensor, prune: Prune | None, quantize: Quantize | None, scheme: Scheme | None, kept: torch.Tensor | None, gram: torch.Tensor | None) -> _Part:
    if gram is None:
        kept = keep_mask(matrix, _plain(prune)) if prune else kept
        values = _left(matrix, kept)
        return _Part(None, kept, *rounded(values, quantize, scheme)) if quantize else _Part(values, kept)
    if prune and prune.saliency == "wanda":  # Sun et al., 2024, "A Simple and Effective Pruning Approach for Large Language Models": |w_ij| |x_j|
        dropped = dropping(prune)(matrix.float().abs() * gram.diagonal().sqrt(), 0)
        return _Part(torch.where(dropped, matrix.new_zeros(()), matrix), ~dropped)
    w, weight = matrix.float(), gram.diagonal().clone()
    asked = (quantize or prune).damping
    grid = Columns(scheme, quantize, matrix.shape[1]) if quantize else None
    if quantize and quantize.scales_inputs:
        w = _left(w, kept)
        inputs, alpha = input_scaling.search(w, gram, lambda x, counted: scheme.decode_rows(*_nearest(x, counted, scheme, quantize)))
        scaled, counted = (w, weight) if inputs is None else (w / inputs, weight * inputs.square())
        codes, found = _nearest(scaled, counted, scheme, quantize)
        return _Part(None, kept, scheme.stored(codes), found, inputs=inputs, alpha=alpha)
    if quantize and quantize.learns:
        codes, found = _nearest(_left(w, kept), weight, scheme, quantize)
        return _Part(None, kept, scheme.stored(codes), found)
    order = torch.argsort(weight, descending=True, stable=True) if quantize and quantize.activation_order else None
    if order is None:
        upper, damping = compensation.factor(gram, asked)
        together = prune.structure[2] if prune and prune.structure[0] == "n:m" else 1
        found = compensation.solve(w, upper, grid, dropping(prune) if prune else None, kept, weight, together)
        codes, kept = found.codes, found.kept
    else:
        upper, damping = compensation.factor(gram[order][:, order], asked)
        found = compensation.solve(w[:, order], upper, Ordered(grid, order, w, weight), None, None if kept is None else kept[:, order], weight[order])
        codes = found.codes[:, torch.argsort(order)]
    if grid:
        return _Part(None, kept, scheme.stored(codes), grid.parameters(), damping)
    return _Part(_within(least_squares.solve(w, kept, gram, w @ gram, damping, _ITERATIONS), matrix.dtype), kept, damping=damping)


def _nearest(w: torch.Tensor, weight: torch.Tensor, scheme: Scheme, step: Quantize) -> tuple[torch.Tensor, Parameters]:
    """Codes [O, I] and what they mean; an error counts weight [I] when that is searched."""
    grid = Columns(scheme, step, w.shape[1])
    grid.begin_all(w, weight)
    return scheme.encode_rows(single(w, scheme), grid.parameters()), grid.parameters()


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
