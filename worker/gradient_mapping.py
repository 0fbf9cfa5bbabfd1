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
from worker.kernels.chunks import Layout
from worker.kernels.coded_size import coded_bytes
from worker.kernels.shares import books_of
from worker.plan import Allotment, TensorPlan

FLOOR = 0.1  # of the mean F, added to each: a weight that no sample moved is not free
_LARGEST = torch.finfo(torch.float32).max
_PART = 1 << 18  # elements worked on together
_SAMPLE = 1 << 20  # elements that the one codebook of a tensor is fitted to
_PRICED, _LEAST = 1 << 15, 1 << 12  # the same under a price, at every trial; and the least of each expert
_NEARLY, _AIM = 0.99, 0.997  # of the bits that a tensor may take: enough, and what is aimed at
_USUAL, _TRIALS = 5, 12  # trials, and how many more there may be until one fits
_LEVELS_HEAD = 64  # bytes of a payload of levels beside them


def quantize(plan: TensorPlan, step: Quantize, encoded: Encoded) -> Encoded:
    """Codes, levels, and the values that they decode to."""
    matrix = plan.matrix(encoded.dense)
    kept = None if encoded.mask is None else plan.matrix(encoded.mask)
    square = plan.statistic("square").to(matrix.device)
    f = sensitivity(square, kept)
    codebook = map_matrix(matrix, f, kept, step, plan.transposed, plan.allotment, plan.experts)
    dense = torch.empty(matrix.shape, dtype=matrix.dtype, device=matrix.device)
    for rows in row_parts(matrix):
        dense[rows] = of_rows(codebook, rows).dequantize().to(matrix.dtype)
    without = [i for i, one in enumerate(plan.each(square)) if not bool(one.any())]
    notes = ["no gradient reaches it: every weight counts alike"] if len(without) == (plan.experts or 1) else []
    if without and not notes:
        notes = [f"no gradient of 16 tokens or more reaches {len(without)} of {plan.experts} experts: every weight of these counts alike"]
    if plan.allotment is not None:
        notes.append(f"allotted {plan.allotment.bits / matrix.numel():.3f} bits a weight, levels included")
    return replace(encoded, action="quantized", reason=None, dense=plan.shaped(dense), quantized=codebook, notes=(*encoded.notes, *notes))


def sensitivity(square: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
    """How much each weight counts, [O, I] float32: F with a floor, of mean about 1; 0 where a weight is pruned. All alike where F is 0 everywhere."""
    count = square.numel() if kept is None else int(kept.sum())
    total = sum(float((part if kept is None else part * kept[rows]).double().sum()) for rows in row_parts(square) for part in (square[rows],))
    mean = total / max(1, count)
    f = square / mean + FLOOR if mean > 0 else torch.ones_like(square)
    return f if kept is None else f * kept


def map_matrix(
    matrix: torch.Tensor,
    f: torch.Tensor,
    kept: torch.Tensor | None,
    step: Quantize,
    transposed: bool = False,
    allotment: Allotment | None = None,
    experts: int | None = None,
) -> Codebook:
    """A matrix [O, I] of any floating dtype, finite; `step.num_bits` says how many levels a codebook has at most.

    Args:
        experts: it is the matrices of so many, one below another.
    """
    size = shared_by(matrix, step)
    if allotment is not None and allotment.slope > 0:
        codes, found = _within(matrix, f, kept, allotment, experts or 1)
    else:
        codes, found = alike([_mapped(*one, step, size) for one in split(matrix, f, kept, experts or 1)])
    return Codebook(codes, found, size, step.num_bits, step, transposed, experts)


def split(matrix: torch.Tensor, f: torch.Tensor, kept: torch.Tensor | None, experts: int) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    """The same of each of so many matrices that stand one below another."""
    return list(zip(matrix.chunk(experts), f.chunk(experts), [None] * experts if kept is None else kept.chunk(experts), strict=True))


def alike(found: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and levels of several matrices, one below another. Levels [K, L] that are fewer are filled up with their last one, which no code stands for."""
    dtype = torch.float32 if any(c.dtype == torch.float32 for _, c in found) else torch.float16
    most = max(c.shape[1] for _, c in found)
    filled = [torch.cat([c, c[:, -1:].expand(-1, most - c.shape[1])], 1).to(dtype) for _, c in found]
    return torch.cat([codes for codes, _ in found]), torch.cat(filled)


def _mapped(matrix: torch.Tensor, f: torch.Tensor, kept: torch.Tensor | None, step: Quantize, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    count = level_count(step.num_bits, matrix.numel() if step.strategy == "tensor" else size, kept is not None)
    found = _of_tensor(matrix, f, kept, count) if step.strategy == "tensor" else _of_groups(matrix, f, kept, size, count)
    return torch.cat([_codes(matrix[rows], found, size, rows) for rows in row_parts(matrix)]), found


def _within(matrix: torch.Tensor, f: torch.Tensor, kept: torch.Tensor | None, allotment: Allotment, experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and levels of one codebook for the whole matrix, or for each expert, under the price at which they take nearly all the bits that they may, and no more: each
    trial is coded, and the price moved by what a bit more or less costs at high resolution, then by what it has been seen to cost."""
    each = split(matrix, f, kept, experts)
    seen = [sample(*one, max(_LEAST, _PRICED // experts)) for one in each]
    slope, best, most, last = allotment.slope, None, -1, None
    for trial in range(_TRIALS):
        codes, found = alike([_at_price(*one, s, slope, allotment.num_bits) for one, s in zip(each, seen, strict=True)])
        bits = 8 * coded(codes, found, allotment.num_bits)
        if best is None or (most < bits <= allotment.bits) or (most > allotment.bits and bits < most):
            best, most = (codes, found), bits
        if allotment.bits * _NEARLY <= bits <= allotment.bits or (trial >= _USUAL and most <= allotment.bits):
            break
        octaves = _octaves(bits, allotment.bits * _AIM, matrix.numel(), last if trial < _USUAL else None) * (1 if trial < _USUAL else 4)
        slope, last = slope * 2**octaves, (bits, octaves)
    return best


def _octaves(bits: int, aim: float, count: int, last: tuple[int, float] | None) -> float:
    """By how much the price has to rise for `aim` bits instead of `bits`.

    Args:
        last: the bits before, and by how much the price has risen since.
    """
    usual = 2 * (bits - aim) / count
    if last is None or (last[0] - bits) * last[1] <= 0:
        return usual
    found = last[1] * (bits - aim) / (last[0] - bits)
    return min(max(found, -3 * abs(usual)), 3 * abs(usual))


def coded(codes: torch.Tensor, found: torch.Tensor, num_bits: int) -> int:
    """Bytes of codes, entropy-coded, and of their levels, as payloads of their own."""
    return coded_bytes(codes.cpu().numpy().reshape(-1), Layout("codes", num_bits)) + found.nbytes + _LEVELS_HEAD


def at_price(
    matrix: torch.Tensor, f: torch.Tensor, step: Quantize, slope: float, num_bits: int, transposed: bool = False, experts: int | None = None
) -> Codebook:
    """A matrix [O, I] under a price of `slope` for each bit (in the unit of f), whatever it then takes: one codebook for all of it, or for each expert."""
    each = split(matrix, f, None, experts or 1)
    codes, found = alike([_at_price(*one, sample(*one, max(_LEAST, _PRICED // 2 // len(each))), slope, num_bits) for one in each])
    return Codebook(codes, found, max(1, matrix.shape[1]), num_bits, step, transposed, experts)


def _at_price(
    matrix: torch.Tensor, f: torch.Tensor, kept: torch.Tensor | None, seen: tuple[torch.Tensor, torch.Tensor], slope: float, num_bits: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and levels. Args: seen: see `sample`."""
    x, g = seen
    zeros = None if kept is None else round((matrix.numel() - int(kept.sum())) * x.numel() / max(1, int(kept.sum())))
    c, rates = priced_levels(x, g, slope, 1 << num_bits, zeros)
    codes = codebooks.assign(x, g, c, rates)
    mass = torch.zeros(c.shape, dtype=torch.float64, device=c.device).scatter_add_(1, codes, g.double())
    found = levels.stored(c, mass, float(((x - c.gather(1, codes)).double().square() * g).sum()), matrix.dtype)
    codes = torch.cat([_priced_codes(matrix[rows], f[rows], kept if kept is None else kept[rows], found.float(), rates) for rows in row_parts(matrix)])
    return codes, found


def priced_levels(x: torch.Tensor, f: torch.Tensor, slope: float, size: int, zeros: int | None, iterations: int = 8) -> tuple[torch.Tensor, codebooks.Rates]:
    """From levels at equal distances, which are the best under a price at high resolution: there a bit is worth 2 ln 2 times the error d^2 / 12."""
    return codebooks.fit_priced(x, f, levels.grid(x, math.sqrt(6 * slope / math.log(2)), size - (zeros is not None)), slope, zeros, iterations)


def _priced_codes(x: torch.Tensor, f: torch.Tensor, kept: torch.Tensor | None, c: torch.Tensor, rates: codebooks.Rates) -> torch.Tensor:
    codes = codebooks.assign(_single(x).reshape(1, -1), f.reshape(1, -1), c, rates).reshape(x.shape)
    if kept is not None:
        codes = torch.where(kept, codes, (c[0] == 0).nonzero()[0, 0])
    return codes.to(torch.uint8)


def level_count(num_bits: int, values: int, zero: bool) -> int:
    """No more levels than there are values for them, and the zero of pruned weights."""
    return min(1 << num_bits, values + zero)


def shared_by(matrix: torch.Tensor, step: Quantize) -> int:
    """How many inputs share a codebook."""
    return step.group_size if step.strategy == "group" else max(1, matrix.shape[1])


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


def _codes(x: torch.Tensor, found: torch.Tensor, size: int, rows: slice) -> torch.Tensor:
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


def some_rows(matrix: torch.Tensor, most: int) -> torch.Tensor:
    """Rows with about `most` weights, spread over the matrix: their numbers."""
    count = min(matrix.shape[0], max(1, most // max(1, matrix.shape[1])))
    return torch.arange(count, device=matrix.device) * matrix.shape[0] // count


def _single(x: torch.Tensor) -> torch.Tensor:
    """float32, finite also where a float64 is larger."""
    return x.clamp(-_LARGEST, _LARGEST).float() if x.dtype == torch.float64 else x.float()


def row_parts(matrix: torch.Tensor) -> Iterator[slice]:
    """Rows that are worked on together."""
    step = max(1, _PART // max(1, matrix.shape[1]))
    return (slice(i, min(i + step, matrix.shape[0])) for i in range(0, matrix.shape[0], step))


def of_rows(q: Codebook, rows: slice) -> Codebook:
    """The codebook of some of the rows."""
    return replace(q, codes=q.codes[rows], levels=books_of(q.levels, rows, len(q.codes)), experts=None)
