"""What a tensor of a lossy result consists of in a packed file: its values, or codes with their scales or levels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from worker.checkpoint import NAMES
from worker.encoded import Codebook, Encoded, Factors, Grid
from worker.formats.packed_entries import columns_of, layout_of
from worker.kernels.chunks import Layout
from worker.kernels.lookup import look_up
from worker.kernels.masks import nonzero
from worker.kernels.payload import chunks
from worker.kernels.shares import books_of

_BLOCK = 1 << 20  # codes that are moved at a time


class Part(NamedTuple):
    """Values that are coded together.

    Args:
        values: [n]; `layout.dtype` once `bias` is added to them.
        columns: of the matrix that they are, row by row; 0 where they are none.
        entropy: whether they are entropy-coded.
        weight: bytes of the restored files that a value stands for; 0 where it stands for none.
        scaled: whether floats may be coded about the scales of rows and columns (level `max`).
    """

    values: np.ndarray
    layout: Layout
    columns: int
    entropy: bool
    weight: float
    bias: int = 0
    scaled: bool = False

    def whole(self) -> np.ndarray:
        """All values, as they are coded."""
        return self.values + np.uint8(self.bias) if self.bias else self.values

    def chunks(self) -> Iterator[np.ndarray]:
        return (part + np.uint8(self.bias) if self.bias else part for part in chunks(self.values, self.layout))

    def sparse(self) -> bool:
        """Whether half of the values or more are 0 or, of codes, the same."""
        if not len(self.values):
            return False
        if self.layout.dtype.itemsize == 1:
            most = int(np.bincount(self.values).max())
        else:
            most = len(self.values) - int(np.count_nonzero(nonzero(self.values)))
        return 2 * most >= len(self.values)


def parts_of(encoded: Encoded, restored: int) -> list[Part]:
    """The parts in their order, values or codes first.

    Integers of uniform quantization are entropy-coded where a lossless step targets them or they are pruned; everything else is.

    Args:
        restored: bytes that the tensor takes in restored files.
    """
    q = encoded.quantized
    if q is None:
        return [_numbers(encoded.dense, restored, columns_of(encoded.spec.shape))._replace(scaled=encoded.level == "max")]
    columns = q.codes.shape[1]
    weight = restored / max(1, q.codes.numel())
    if isinstance(q, Codebook):
        q = aligned(q)
        return [Part(tensor_bytes(q.codes), Layout("codes", q.num_bits), columns, True, weight), _numbers(q.levels, q.levels.nbytes)]
    entropy = encoded.lossless or encoded.mask is not None
    if isinstance(q, Grid):
        codes = Part(tensor_bytes(q.codes), Layout("codes", q.params.num_bits), columns, entropy, weight)
        levels = [] if q.levels is None else [_numbers(q.levels, entropy=entropy)]
        return [codes, *levels, *(part for f in (q.scale, q.offset, q.inputs) if f is not None for part in _factors(f, entropy))]
    if q.params.type == "float":
        codes = _numbers(q.codes, restored, columns, entropy)
    else:
        codes = Part(tensor_bytes(q.codes), Layout("codes", q.params.num_bits), columns, entropy, weight, 1 << (q.params.num_bits - 1))
    return [codes, *(_numbers(t, entropy=entropy) for t in (q.scale, q.zero_point) if t is not None)]


def _factors(f: Factors, entropy: bool) -> list[Part]:
    """Floats, or codes and the floats above them."""
    if f.above is None:
        return [_numbers(f.values, entropy=entropy)]
    bias = 1 << (f.bits - 1) if f.values.dtype == torch.int8 else 0
    return [Part(tensor_bytes(f.values), Layout("codes", f.bits), 0, entropy, 0, bias), _numbers(f.above, entropy=entropy)]


def aligned(q: Codebook) -> Codebook:
    """The same values, with the level 0 at the same code in all codebooks that have one (its code is the most frequent of pruned weights, and is coded
    best where it is always the same); the other levels keep their order."""
    none = q.levels == 0
    if len(q.levels) < 2 or not none.any():
        return q
    zero = none.int().argmax(1, keepdim=True)
    zero = torch.where(none.any(1, keepdim=True), zero, zero[none.any(1)].mode(0).values)
    at = int(zero.mode(0).values)
    if (zero == at).all():
        return q
    old = torch.arange(q.levels.shape[1], device=q.levels.device).expand(q.levels.shape)
    place = old - (old > zero).int()
    new = torch.where(old == zero, at, place + (place >= at).int())
    codes = torch.empty_like(q.codes)
    step = max(1, _BLOCK // max(1, q.codes.shape[1]))
    for i in range(0, len(codes), step):
        codes[i : i + step] = look_up(q.codes[i : i + step], books_of(new, slice(i, i + step), len(codes)), q.group_size)
    return replace(q, codes=codes, levels=torch.empty_like(q.levels).scatter_(1, new, q.levels))


def _numbers(t: torch.Tensor, restored: int = 0, columns: int = 0, entropy: bool = True) -> Part:
    bits = tensor_bytes(t)
    layout, count = layout_of(NAMES[t.dtype], len(bits))
    return Part(bits.view(layout.dtype), layout, columns, entropy, restored / max(1, count))


def tensor_bytes(values: torch.Tensor) -> np.ndarray:
    """The bytes of a tensor, row-major: uint8 [nbytes]; a view where it is contiguous."""
    return values.contiguous().reshape(-1).view(torch.uint8).numpy()
