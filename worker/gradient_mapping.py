"""Gradient mapping: every weight becomes the code of a level, and levels stand where the loss feels them.

The loss grows by about sum_i F_i (w_i - q_i)^2, with F_i the sum over samples of the squared gradient (the diagonal of the empirical Fisher information),
so that levels are found by k-means with these weights, for a whole tensor, for each row, or for each group of a row. Codes are computed against the
levels as they are stored and, once decoded, rounded to the tensor's own dtype. Pruned weights have a level of their own, which is exactly 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch

from app.recipe import Quantize
from worker.encoded import Codebook, Encoded
from worker.kernels import codebooks, levels
from worker.plan import TensorPlan

FLOOR = 0.1  # of the mean F, added to each: a weight that no sample moved is not free
_LARGEST = torch.finfo(torch.float32).max
_PART = 1 << 18  # elements worked on together
_SAMPLE = 1 << 20  # elements that the one codebook of a tensor is fitted to


def quantize(plan: TensorPlan, step: Quantize, encoded: Encoded) -> Encoded:
    """Codes, levels, and the values that they decode to."""
    matrix = plan.matrix(encoded.dense)
    kept = None if encoded.mask is None else plan.matrix(encoded.mask)
    square = plan.statistic("square").to(matrix.device)
    f = sensitivity(square, kept)
    codebook = map_matrix(matrix, f, kept, step, plan.transposed)
    dense = torch.empty(matrix.shape, dtype=matrix.dtype, device=matrix.device)
    for rows in row_parts(matrix):
        dense[rows] = of_rows(codebook, rows).dequantize().to(matrix.dtype)
    notes = encoded.notes if bool(square.any()) else (*encoded.notes, "no gradient reaches it: every weight counts alike")
    return replace(encoded, action="quantized", reason=None, dense=plan.shaped(dense), quantized=codebook, notes=notes)


def sensitivity(square: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
    """How much each weight counts, [O, I] float32: F with a floor, of mean about 1; 0 where a weight is pruned. All alike where F is 0 everywhere."""
    count = square.numel() if kept is None else int(kept.sum())
    total = sum(float((part if kept is None else part * kept[rows]).double().sum()) for rows in row_parts(square) for part in (square[rows],))
    mean = total / max(1, count)
    f = square / mean + FLOOR if mean > 0 else torch.ones_like(square)
    return f if kept is None else f * kept


def map_matrix(matrix: torch.Tensor, f: torch.Tensor, kept: torch.Tensor | None, step: Quantize, transposed: bool = False) -> Codebook:
    """A matrix [O, I] of any floating dtype, finite; `step.num_bits` says how many levels a codebook has at most."""
    size = step.group_size if step.strategy == "group" else max(1, matrix.shape[1])
    found = _of_tensor(matrix, f, kept, 1 << step.num_bits) if step.strategy == "tensor" else _of_groups(matrix, f, kept, size, 1 << step.num_bits)
    codes = torch.cat([_codes(matrix[rows], f[rows], kept, found, size, rows) for rows in row_parts(matrix)])
    return Codebook(codes, found, size, step.num_bits, step, transposed)


def _of_tensor(matrix: torch.Tensor, f: torch.Tensor, kept: torch.Tensor | None, count: int) -> torch.Tensor:
    x, g = sample(matrix, f, kept)
    c = codebooks.fit(x, g, count, zero=kept is not None)
    return levels.stored(c, *_mass(x, g, c), matrix.dtype)


def _of_groups(matrix: torch.Tensor, f: torch.Tensor, kept: torch.Tensor | None, size: int, count: int) -> torch.Tensor:
    found, masses, loss = [], [], 0.0
    for rows in row_parts(matrix):
        x, g = grouped(_single(matrix[rows]), size), grouped(f[rows], size)
        found.append(codebooks.fit(x, g, count, zero=kept is not None))
        mass, more = _mass(x, g, found[-1])
        masses.append(mass)
        loss += more
    return levels.stored(torch.cat(found), torch.cat(masses), loss, matrix.dtype)


def _mass(x: torch.Tensor, f: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The weight of each level [K, L], and the squared error, float64."""
    codes = codebooks.nearest(x, c)
    mass = torch.zeros(c.shape, dtype=torch.float64, device=c.device).scatter_add_(1, codes, f.double())
    return mass, float(((x - c.gather(1, codes)).double().square() * f).sum())


def _codes(x: torch.Tensor, f: torch.Tensor, kept: torch.Tensor | None, found: torch.Tensor, size: int, rows: slice) -> torch.Tensor:
    """uint8 [R, I] of some rows; pruned weights are exactly 0 and have a level that is, so that the nearest one is theirs."""
    c = found.float()
    if len(c) == 1:
        return codebooks.nearest(_single(x).reshape(1, -1), c).reshape(x.shape).to(torch.uint8)
    groups = -(-x.shape[1] // size)
    codes = codebooks.nearest(grouped(_single(x), size), c[rows.start * groups : rows.stop * groups])
    return codes.reshape(x.shape[0], -1)[:, : x.shape[1]].to(torch.uint8)


def grouped(x: torch.Tensor, size: int) -> torch.Tensor:
    """[R, I] -> [R * G, size]; a short last group is filled with zeros, which weigh nothing."""
    return torch.nn.functional.pad(x, (0, -x.shape[1] % size)).reshape(-1, size)


def sample(matrix: torch.Tensor, f: torch.Tensor, kept: torch.Tensor | None, most: int = _SAMPLE) -> tuple[torch.Tensor, torch.Tensor]:
    """About `most` of the weights that are kept, and how they count: [1, n] each, spread over the whole matrix."""
    count = matrix.numel() if kept is None else int(kept.sum())
    stride = max(1, -(-count // most)) | 1 if count > most else 1
    while math.gcd(stride, matrix.shape[1]) > 1:  # a stride that divides a row would see some of the inputs only
        stride += 2
    xs, fs, start = [], [], 0
    for rows in row_parts(matrix):
        x, g = matrix[rows].reshape(-1), f[rows].reshape(-1)
        if kept is not None:
            where = kept[rows].reshape(-1)
            x, g = x[where], g[where]
        xs.append(_single(x[start::stride]))
        fs.append(g[start::stride])
        start = (start - len(x)) % stride
    x, g = torch.cat(xs), torch.cat(fs)
    return (x[None], g[None]) if len(x) else (matrix.new_zeros(1, 1).float(), f.new_ones(1, 1))


def _single(x: torch.Tensor) -> torch.Tensor:
    """float32, finite also where a float64 is larger."""
    return x.clamp(-_LARGEST, _LARGEST).float() if x.dtype == torch.float64 else x.float()


def row_parts(matrix: torch.Tensor) -> Iterator[slice]:
    """Rows that are worked on together."""
    step = max(1, _PART // max(1, matrix.shape[1]))
    return (slice(i, min(i + step, matrix.shape[0])) for i in range(0, matrix.shape[0], step))


def of_rows(q: Codebook, rows: slice) -> Codebook:
    """The codebook of some of the rows."""
    each = 0 if len(q.levels) == 1 else len(q.levels) // len(q.codes)
    return replace(q, codes=q.codes[rows], levels=q.levels[rows.start * each : rows.stop * each] if each else q.levels)
