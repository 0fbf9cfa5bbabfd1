"""Uniform quantization: integers of 2 to 8 bits or fp8, with a scale per tensor, output channel or group of inputs (`worker.schemes` has the numbers).
Levels that gradients place are in `worker.gradient_mapping`.

`scale_search: mse` costs 48 trials a group and pays below 8 bits (see benchmarks/quality.py). Pruned weights decode to exactly 0: the mask precedes the
search, and 0 is a level of every scheme here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from app.recipe import Quantize
from worker import gradient_mapping
from worker.encoded import Encoded, Grid, Quantized
from worker.kernels import gpu_rounding, native, uniform
from worker.kernels.scale_search import multipliers, shrinks
from worker.kernels.shares import portion
from worker.methods.registry import method
from worker.plan import TensorPlan
from worker.schemes import Parameters, Scheme, assembled, joined, scheme_of, single



@method(Quantize)
def quantize(plan: TensorPlan, step: Quantize, encoded: Encoded) -> Encoded:
    """Codes and scales or, by gradients, levels, and the values that they decode to."""
    if step.mapping == "gradient":
        return gradient_mapping.quantize(plan, step, encoded)
    matrix = plan.matrix(encoded.dense)
    quantized = quantize_matrix(matrix, step, plan.scale_dtype, plan.transposed, plan.experts)
    return replace(encoded, action="quantized", reason=None, dense=plan.shaped(decoded(quantized, matrix.dtype)), quantized=quantized)


def decoded(q: Quantized | Grid, dtype: torch.dtype) -> torch.Tensor:
    """The values [O, I] in the dtype of the tensor."""
    if isinstance(q, Quantized):
        return uniform.dense(q.codes, q.scale, q.zero_point, q.group_size, dtype, bounded=True)
    dense = torch.empty(q.codes.shape, dtype=dtype, device=q.codes.device)
    for rows, values in _decoded(q):
        dense[rows] = values.clamp_(*_bounds(dtype)).to(dtype)
    return dense


def _bounds(dtype: torch.dtype) -> tuple[float, float]:
    """Near the largest number of a dtype a scale rounded up may decode beyond it."""
    return (torch.finfo(dtype).min, torch.finfo(dtype).max) if dtype == torch.float16 else (float("-inf"), float("inf"))


def quantize_matrix(
    matrix: torch.Tensor, step: Quantize, scale_dtype: torch.dtype | None = None, transposed: bool = False, experts: int | None = None
) -> Quantized | Grid:
    """A matrix [O, I] of any floating dtype, finite.

    Args:
        scale_dtype: how scales are stored; None: float16 where that keeps every scale normal, else float32.
        experts: it is the matrices of so many, one below another.
    """
    scheme = scheme_of(step, matrix, scale_dtype)
    codes, found = zip(*(rounded(part, step, scheme) for part in matrix.chunk(experts or 1)), strict=True)
    return assembled(scheme, torch.cat(codes), joined(found, 0), step, transposed, experts)


def rounded(matrix: torch.Tensor, step: Quantize, scheme: Scheme) -> tuple[torch.Tensor, Parameters]:
    """Codes [O, I] as they are stored, each the nearest, and what they mean."""
    if scheme.compiled and step.strategy != "tensor" and matrix.numel() and native.takes(matrix):
        if scheme.offset == "integer":
            codes, scale, zero = native.quantize_asymmetric(matrix, scheme.levels, scheme.group_size, shrinks() if scheme.search == "mse" else None, scheme.dtype)
            return codes, Parameters(scale, zero)
        search = multipliers(scheme.levels.num_bits) if scheme.search == "mse" else None
        codes, scale = native.quantize(matrix, scheme.levels, scheme.group_size, search, scheme.dtype)
        return codes, Parameters(scale)
    if scheme.compiled and step.strategy == "group" and scheme.offset == "none" and scheme.search == "mse" and gpu_rounding.takes(matrix, scheme.levels, scheme.group_size):
        codes, scale = gpu_rounding.search(matrix, scheme.levels, scheme.group_size, scheme.dtype)
        return codes, Parameters(scale)
    whole = None
    if step.strategy == "tensor":
        whole = replace(scheme, group_size=max(1, matrix.numel())).parameters(single(matrix, scheme).reshape(1, -1))
    codes, found = [], []
    for part in matrix.split(max(1, portion(matrix.device) // max(1, matrix.shape[1]))):
        x = single(part, scheme)
        found.append(whole or scheme.parameters(x))
        codes.append(scheme.stored(scheme.encode_rows(x, found[-1])))
    return torch.cat(codes), whole or joined(found, 0)


def _decoded(q: Quantized | Grid) -> Iterator[tuple[slice, torch.Tensor]]:
    """(rows, their values in float32), some at a time."""
    step = max(1, portion(q.codes.device) // max(1, q.codes.shape[1]))
    return ((rows := slice(i, i + step), q.dequantize(rows)) for i in range(0, q.codes.shape[0], step))
