"""Uniform quantization: integers of 2 to 8 bits or fp8, with a scale per tensor, output channel or group of inputs. (Levels that gradients place are in
`worker.gradient_mapping`.)

`scale_search: mse` costs 48 trials a group and pays below 8 bits (see benchmarks/quality.py). Pruned weights decode to exactly 0: the mask precedes the
search, and 0 is a level of every scheme here.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from app.recipe import Quantize
from worker import gradient_mapping
from worker.encoded import Encoded, Quantized
from worker.kernels import uniform
from worker.methods.registry import method
from worker.plan import TensorPlan

_PART = 1 << 18  # elements worked on together: small enough for the cache
_HALF = torch.finfo(torch.float16)


@method(Quantize)
def quantize(plan: TensorPlan, step: Quantize, encoded: Encoded) -> Encoded:
    """Codes and scales or, by gradients, levels, and the values that they decode to."""
    if step.mapping == "gradient":
        return gradient_mapping.quantize(plan, step, encoded)
    matrix = plan.matrix(encoded.dense)
    quantized = quantize_matrix(matrix, step, plan.scale_dtype, plan.transposed)
    dense = torch.empty(matrix.shape, dtype=matrix.dtype, device=matrix.device)
    for rows, scale, zero in _row_parts(quantized):
        dense[rows] = uniform.dequantize(quantized.codes[rows], scale, zero, quantized.group_size).clamp_(*_bounds(matrix.dtype)).to(matrix.dtype)
    return replace(encoded, action="quantized", reason=None, dense=plan.shaped(dense), quantized=quantized)


def _bounds(dtype: torch.dtype) -> tuple[float, float]:
    """Near the largest number of a dtype a scale rounded up may decode beyond it."""
    return (torch.finfo(dtype).min, torch.finfo(dtype).max) if dtype == torch.float16 else (float("-inf"), float("inf"))


def quantize_matrix(matrix: torch.Tensor, step: Quantize, scale_dtype: torch.dtype | None = None, transposed: bool = False) -> Quantized:
    """A matrix [O, I] of any floating dtype, finite.

    Args:
        scale_dtype: how scales are stored; None: float16 where that keeps every scale normal, else float32.
    """
    levels = uniform.Levels(step.num_bits, step.type == "float")
    size = step.group_size if step.strategy == "group" else max(1, matrix.shape[1])
    dtype = scale_dtype or _scale_dtype(matrix, size, levels)
    whole = None
    if step.strategy == "tensor":
        whole = _qparams(matrix.float().reshape(1, -1), step, levels, dtype)
    kind = torch.float8_e4m3fn if levels.floating else torch.int8
    codes, scales, zeros = [], [], []
    for part in matrix.split(max(1, _PART // max(1, matrix.shape[1]))):
        x = _grouped(part.float(), size)
        scale, zero = whole or _qparams(x.flatten(0, 1), step, levels, dtype)
        if whole is None:
            scale, zero = scale.reshape(x.shape[0], x.shape[1], 1), None if zero is None else zero.reshape(x.shape[0], x.shape[1], 1)
        found = uniform.encode(x, scale, zero, levels).flatten(1)[:, : part.shape[1]]
        codes.append(found.to(kind))
        scales.append(scale[..., 0].to(dtype))
        zeros.append(None if zero is None else zero[..., 0].to(torch.int8))
    if whole is not None:
        scales, zeros = [whole[0].to(dtype)], [None if whole[1] is None else whole[1].to(torch.int8)]
    zero_point = None if zeros[0] is None else torch.cat(zeros)
    return Quantized(torch.cat(codes), torch.cat(scales), zero_point, size, step, transposed)


def _grouped(x: torch.Tensor, size: int) -> torch.Tensor:
    """[R, I] -> [R, G, size]; a short last group is filled with zeros, which change neither its range nor its errors."""
    return torch.nn.functional.pad(x, (0, -x.shape[1] % size)).unflatten(1, (-1, size))


def _qparams(x: torch.Tensor, step: Quantize, levels: uniform.Levels, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scale and zero point [N, 1] of groups [N, g], float32."""
    if step.symmetric:
        found = uniform.search(x, levels, dtype) if step.scale_search == "mse" else uniform.stored(uniform.absmax_scale(x, levels), dtype)
        return found, None
    return (uniform.search_asymmetric if step.scale_search == "mse" else uniform.asymmetric)(x, levels, dtype)


def _scale_dtype(matrix: torch.Tensor, size: int, levels: uniform.Levels) -> torch.dtype:
    """float16 when no group's absmax scale comes near its limits (a search moves a scale by a factor below 4)."""
    for part in matrix.split(max(1, _PART // max(1, matrix.shape[1]))):
        x = _grouped(part.float(), size)
        used = uniform.absmax_scale(x, levels)[(x != 0).any(-1, keepdim=True)]
        if used.numel() and (used.min() < 4 * _HALF.tiny or used.max() > _HALF.max / 4):
            return torch.float32
    return torch.float16


def _row_parts(q: Quantized):
    step = max(1, _PART // max(1, q.codes.shape[1]))
    for i in range(0, q.codes.shape[0], step):
        rows = slice(i, i + step)
        part = slice(None) if q.scale.shape[0] == 1 else rows
        yield rows, q.scale[part], None if q.zero_point is None else q.zero_point[part]
