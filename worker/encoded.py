"""What a tensor has become on its way from the reader to the writer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from app.recipe import Quantize
from worker.checkpoint import TensorSpec
from worker.kernels.affine import factors, grid_values
from worker.kernels.lookup import look_up
from worker.kernels.shares import books_of, rows_of
from worker.kernels.uniform import dequantize


@dataclass(frozen=True)
class Quantized:
    """Codes and scale factors of one matrix.

    Args:
        codes: int8 [O, I] (two's complement, in [-2^(b-1), 2^(b-1) - 1], also when asymmetric), or float8_e4m3fn [O, I].
        scale: [O, G] for groups, [O, 1] for channels, [1, 1] for tensors, [E, 1] for experts; dtype is the one in which it is stored. May be negative.
        zero_point: int8, shaped like `scale`, or None when symmetric. `value = (code - zero_point) * scale`.
        group_size: inputs that share a scale; I for channels and tensors. The last group may be short.
        params: the step that made it, with what was resolved (a fallback from group to channel is visible here).
        transposed: the tensor is stored [I, O] (GPT-2's Conv1D), so codes and scale describe its transpose. Otherwise a tensor of rank > 2 is
            seen as [O, everything else].
        experts: E, where it is the matrices of so many, one below another: the tensor is stored [E, O / E, I] or, transposed, [E, I, O / E].
    """

    codes: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor | None
    group_size: int
    params: Quantize
    transposed: bool = False
    experts: int | None = None

    def dequantize(self, rows: slice = slice(None)) -> torch.Tensor:
        """float32 [O, I], or some of its rows."""
        scale, zero_point = (None if t is None else rows_of(t, rows, len(self.codes)) for t in (self.scale, self.zero_point))
        return dequantize(self.codes[rows], scale, zero_point, self.group_size)

    def to(self, device: torch.device) -> Quantized:
        zero_point = None if self.zero_point is None else self.zero_point.to(device)
        return replace(self, codes=self.codes.to(device), scale=self.scale.to(device), zero_point=zero_point)


@dataclass(frozen=True)
class Factors:
    """A number for each group: floats or, where there is an `above`, integers under a float16 for every `each` groups of a row.

    Args:
        values: [O, G] float16 or float32; int8 (signed) or uint8 integers of `bits` bits.
        above: float16 [O, ceil(G / each)]; the number is `above * value * 2^exponent`.
    """

    values: torch.Tensor
    above: torch.Tensor | None = None
    each: int = 1
    bits: int | None = None
    exponent: int = 0

    def floats(self, rows: slice, count: int) -> torch.Tensor:
        """float32 [O, G] of some of `count` rows."""
        values, above = (None if t is None else rows_of(t, rows, count) for t in (self.values, self.above))
        return factors(values, above, self.each, self.exponent)

    def to(self, device: torch.device) -> Factors:
        return replace(self, values=self.values.to(device), above=None if self.above is None else self.above.to(device))


@dataclass(frozen=True)
class Grid:
    """Codes of one matrix and what `packed` alone carries beside them: `value = level * scale - offset`.

    Args:
        codes: uint8 [O, I]. A code's level is `levels[code]` where there are levels, itself where there is an offset, else `code - 2^(b-1)`.
        scale, offset: of each group. No offset where symmetric.
        group_size: inputs that share them; I for channels and tensors. The last group may be short.
        params: the step that made it, with what was resolved.
        levels: float32 [2^b], ascending; without an offset only.
        inputs: float16 [1 or E, I], by which the values of each input are multiplied (see `worker.kernels.input_scaling`); None: by nothing.
        zero: the code whose value is nearest to 0 stands for exactly 0 (see `worker.kernels.affine`); with an offset only.
        transposed, experts: as in `Quantized`.
    """

    codes: torch.Tensor
    scale: Factors
    offset: Factors | None
    group_size: int
    params: Quantize
    levels: torch.Tensor | None = None
    zero: bool = False
    transposed: bool = False
    experts: int | None = None
    inputs: Factors | None = None

    def dequantize(self, rows: slice = slice(None)) -> torch.Tensor:
        """float32 [O, I], or some of its rows."""
        scale, offset = (None if f is None else f.floats(rows, len(self.codes)) for f in (self.scale, self.offset))
        values = grid_values(self.codes[rows], scale, offset, self.params.num_bits, self.group_size, self.zero, self.levels)
        return values if self.inputs is None else values * self.inputs.floats(rows, len(self.codes))

    def to(self, device: torch.device) -> Grid:
        offset, levels, inputs = (None if part is None else part.to(device) for part in (self.offset, self.levels, self.inputs))
        return replace(self, codes=self.codes.to(device), scale=self.scale.to(device), offset=offset, levels=levels, inputs=inputs)


@dataclass(frozen=True)
class Codebook:
    """Codes of one matrix and the levels that they stand for: `value = levels[k, code]`, k the codebook of the row, group or tensor.

    Args:
        codes: uint8 [O, I], indices into the levels.
        levels: float16 or float32 [K, L], L <= 2^num_bits, ascending; a pruned weight has a level that is exactly 0. K is 1 for a tensor, E for experts,
            O for rows, O * G for the G groups of every row, one after another.
        group_size: inputs that share a codebook; I for rows and tensors. The last group may be short.
        num_bits: of a code, 1 to 8.
        params: the step that made it, with what was resolved.
        transposed, experts: as in `Quantized`.
    """

    codes: torch.Tensor
    levels: torch.Tensor
    group_size: int
    num_bits: int
    params: Quantize
    transposed: bool = False
    experts: int | None = None

    def dequantize(self) -> torch.Tensor:
        """float32 [O, I]."""
        return look_up(self.codes, books_of(self.levels, slice(None), len(self.codes)), self.group_size)

    def to(self, device: torch.device) -> Codebook:
        return replace(self, codes=self.codes.to(device), levels=self.levels.to(device))


@dataclass(frozen=True)
class Encoded:
    """One tensor of the result.

    Args:
        spec: as it was in the input.
        action: quantized | pruned | encoded | copied | dropped. The last step that changed how it is stored names it.
        dense: the values that a reader of the result sees, original dtype and shape (dequantized when `quantized` is set).
        reason: why it was copied or dropped; None where a step worked on it.
        mask: bool, shape of the tensor, True where kept; None when not pruned.
        quantized: set when action is quantized.
        notes: e.g. `group_size 128 does not divide 172: channel`.
    """

    spec: TensorSpec
    action: str
    dense: torch.Tensor
    reason: str | None = None
    mask: torch.Tensor | None = None
    quantized: Quantized | Grid | Codebook | None = None
    lossless: bool = False  # a lossless step targets it (packed then entropy-codes its planes)
    level: str = "normal"  # of that step: of `max`, floats are coded about the scales of their rows and columns
    notes: tuple[str, ...] = ()

    def to(self, device: torch.device) -> Encoded:
        """The same with all tensors on `device`."""
        mask, quantized = (None if part is None else part.to(device) for part in (self.mask, self.quantized))
        return replace(self, dense=self.dense.to(device), mask=mask, quantized=quantized)
