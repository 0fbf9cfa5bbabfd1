"""Numeric schemes of `quantize` with `mapping: uniform`: the parameters of some columns, codes under them, and values again. Whoever chooses codes one
column after another (GPTQ) and whoever rounds a whole matrix at once use the same three functions:

    p = scheme.parameters(w[:, a:b])            a a multiple of `scheme.span`: the inputs whose parameters are found together
    c = scheme.encode(w[:, j], p.group(g))      g = (j - a) // scheme.group_size
    v = scheme.decode(c, p.group(g))

and `assembled` makes of all codes and parameters what the writers take.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch

from app.normal_levels import normal_levels
from app.recipe import Quantize
from app.steps import SUPER
from worker.encoded import Factors, Grid, Quantized
from worker.kernels import affine, half_quadratic, native, scale_search, two_level, uniform
from worker.kernels.shares import portion
from worker.kernels.table import Table

_HALF, _LARGEST = torch.finfo(torch.float16), torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Parameters:
    """What codes mean: float32 [R, G] for G groups of R rows, each as it is read back once it was stored.

    Args:
        scale, zero_point, offset: `value = (level - zero_point) * scale - offset`; None where there is none.
        scale_codes, offset_codes: what is stored of them under `scale_above`, `offset_above` [R, S]; None where the floats are.
    """

    scale: torch.Tensor
    zero_point: torch.Tensor | None = None
    offset: torch.Tensor | None = None
    scale_codes: torch.Tensor | None = None
    scale_above: torch.Tensor | None = None
    offset_codes: torch.Tensor | None = None
    offset_above: torch.Tensor | None = None

    def group(self, g: int) -> Parameters:
        """[R]: those of one group, to encode and decode with."""
        return Parameters(self.scale[:, g], *(None if t is None else t[:, g] for t in (self.zero_point, self.offset)))

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Parameters:
        return Parameters(*(None if (t := getattr(self, f.name)) is None else change(t) for f in fields(self)))


def joined(parts: Sequence[Parameters], dim: int) -> Parameters:
    """Those of several rows (0) or of several spans (1)."""
    if len(parts) == 1:
        return parts[0]
    columns = [[getattr(p, f.name) for p in parts] for f in fields(Parameters)]
    return Parameters(*(None if c[0] is None else torch.cat(c, dim) for c in columns))


@dataclass(frozen=True)
class Scheme:
    """How the numbers of a step are made.

    Args:
        levels: what a code may stand for.
        group_size: inputs that share a scale.
        search: absmax, mse or hqq.
        offset: none | integer (a zero point) | float.
        dtype: of scales and offsets, where they are stored as floats.
        scale_bits: of the integers that they are stored as otherwise, under a float16 for every 256 inputs.
        exponent: of two, by which these float16s are multiplied.
        zero: 0 is to stay 0 also under a float offset.
    """

    levels: uniform.Levels | affine.Unsigned | Table
    group_size: int
    search: str
    offset: str
    dtype: torch.dtype
    scale_bits: int | None = None
    exponent: int = 0
    zero: bool = False

    @property
    def compiled(self) -> bool:
        """Whether `worker.kernels.native.quantize`, or `quantize_asymmetric`, does the same."""
        plain = isinstance(self.levels, uniform.Levels) and self.offset in ("none", "integer") and self.scale_bits is None
        return plain and not (self.levels.floating and (self.search == "mse" or self.offset == "integer"))

    @property
    def span(self) -> int:
        return SUPER if self.scale_bits else self.group_size

    def parameters(self, x: torch.Tensor, importance: torch.Tensor | None = None) -> Parameters:
        """Of x [R, c], float32, as many spans as it has; the last one may be short.

        Args:
            importance: [c] of mean 1 or so, >= 0: what a squared error in each column counts in a search; None: all alike.
        """
        rows, columns = x.shape
        whole, parts = columns // self.span, []
        if whole:
            groups = (self.span // self.group_size, self.group_size)
            counted = None if importance is None else importance[: whole * self.span].repeat(rows).reshape(-1, *groups)
            found = self._fit(x[:, : whole * self.span].reshape(-1, *groups), counted, importance is not None)
            parts.append(found.map(lambda t: t.reshape(rows, -1)))
        if columns > whole * self.span or not parts:
            rest = x[:, whole * self.span :]
            size = self.group_size if self.scale_bits else rest.shape[1]
            short = -rest.shape[1] % size if size else 0
            counted = None if importance is None else importance[whole * self.span :]
            if short:
                counted = torch.nn.functional.pad(rest.new_ones(rest.shape[1]) if counted is None else counted, (0, short))
            counted = counted.reshape(-1, size) if counted is not None and size else None
            found = self._fit(torch.nn.functional.pad(rest, (0, short)).reshape(rows, -1, size) if size else rest[:, None], counted, importance is not None)
            parts.append(found.map(lambda t: t.reshape(rows, -1)))
        return joined(parts, 1)

    def encode(self, x: torch.Tensor, p: Parameters) -> torch.Tensor:
        """Levels of x [R] or [R, n] under parameters [R] (or more dimensions of both), float32: integers, or floats of fp8 and of tables."""
        scale, zero, offset = (_spread(t, x) for t in (p.scale, p.zero_point, p.offset))
        if offset is not None:
            return affine.encode(x, scale, offset, self.levels, self.zero)
        return self._round(x, scale) if zero is None else uniform.encode(x, scale, zero, self.levels)

    def decode(self, codes: torch.Tensor, p: Parameters) -> torch.Tensor:
        """What `encode` gave, as values."""
        scale, zero, offset = (_spread(t, codes) for t in (p.scale, p.zero_point, p.offset))
        if offset is not None:
            return affine.decode(codes, scale, offset, self.levels, self.zero)
        return uniform.decode(codes, scale, zero)

    def encode_rows(self, x: torch.Tensor, p: Parameters) -> torch.Tensor:
        """`encode` of x [R, I] under parameters [R or 1, G] of all of its groups."""
        size = max(1, x.shape[1]) if p.scale.shape[1] == 1 else self.group_size
        groups = torch.nn.functional.pad(x, (0, -x.shape[1] % size)).unflatten(1, (-1, size))
        return self.encode(groups, p).flatten(1)[:, : x.shape[1]]

    def decode_rows(self, codes: torch.Tensor, p: Parameters) -> torch.Tensor:
        """`decode` of what `encode_rows` gave."""
        size = max(1, codes.shape[1]) if p.scale.shape[1] == 1 else self.group_size
        groups = torch.nn.functional.pad(codes, (0, -codes.shape[1] % size)).unflatten(1, (-1, size))
        return self.decode(groups, p).flatten(1)[:, : codes.shape[1]]

    def stored(self, codes: torch.Tensor) -> torch.Tensor:
        """What `encode` gave, as it is kept: int8 or float8_e4m3fn as in `Quantized`, uint8 as in `Grid`."""
        if self.offset == "float":
            return codes.to(torch.uint8)
        if isinstance(self.levels, Table):
            return self.levels.codes(codes)
        if self.scale_bits:
            return (codes - self.levels.low).to(torch.uint8)
        return codes.to(torch.float8_e4m3fn if self.levels.floating else torch.int8)

    def _round(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return self.levels.round(affine.quotient(x, scale) if self.scale_bits else uniform.divide(x, scale))

    def _fit(self, x: torch.Tensor, counted: torch.Tensor | None, unlike: bool) -> Parameters:
        """Of x [N, K, g].

        Args:
            counted: [K, g] or [N, K, g], what errors count, 0 where x is only there to fill a short group; None where all of it counts.
            unlike: whether what is in x counts unlike.
        """
        mse = self.search == "mse"
        each = counted.expand(x.shape).flatten(0, 1) if unlike and counted is not None else None
        if self.offset == "integer":
            flat = x.flatten(0, 1)
            return Parameters(*(scale_search.search_asymmetric(flat, self.levels, self.dtype, each) if mse else uniform.asymmetric(flat, self.levels, self.dtype)))
        weight = (x != 0).float() * (counted if unlike else 1) if self.zero else counted  # a 0 costs nothing, wherever the levels are
        if self.offset == "float":
            anywhere = not self.scale_bits
            scale, offset = affine.search(x, self.levels, weight, self.zero, anywhere) if mse else affine.span(x, self.levels, weight, anywhere)
            if self.search == "hqq":
                scale = scale if self.scale_bits else uniform.stored(scale, self.dtype)
                offset = half_quadratic.offset(x, scale, offset, self.levels, weight, self.zero, anywhere)
        else:
            flat, dtype = x.flatten(0, 1), torch.float32 if self.scale_bits else self.dtype
            scale = scale_search.search(flat, self.levels, dtype, each) if mse else uniform.stored(uniform.absmax_scale(flat, self.levels), dtype)
            scale, offset = scale.reshape(*x.shape[:2], 1), None
        return self._two_level(x, scale, offset, weight) if self.scale_bits else self._floats(x, scale, offset, weight)

    def _floats(self, x: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None, weight: torch.Tensor | None) -> Parameters:
        if offset is None:
            return Parameters(scale)
        scale = uniform.stored(scale, self.dtype)
        if self.search == "mse":
            size = affine.size_of(x)
            offset = affine.fit_offset(affine.encode(x, scale, offset, self.levels, self.zero), x / size, scale / size, weight) * size
        most = min(torch.finfo(self.dtype).max, _LARGEST)
        return Parameters(scale, None, offset.clamp(-most, most).to(self.dtype).float())

    def _two_level(self, x: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None, weight: torch.Tensor | None) -> Parameters:
        scale = torch.where((x != 0).any(-1, keepdim=True), scale, torch.zeros_like(scale))
        s = two_level.coded(scale, self.scale_bits, offset is None, self.exponent)
        o = None if offset is None else two_level.coded(offset, self.scale_bits, False, self.exponent)
        if self.search == "mse":
            s, o = two_level.refined(x, s, o, self.scale_bits, self.exponent, self._decoded, self.levels, weight, self.zero)
        found = Parameters(s.floats(self.exponent), None, None if o is None else o.floats(self.exponent), *s, *(o or ()))
        return found.map(lambda t: t.squeeze(-1))

    def _decoded(self, x: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None) -> torch.Tensor:
        if offset is None:
            return self._round(x, scale) * scale
        return affine.decode(affine.encode(x, scale, offset, self.levels, self.zero), scale, offset, self.levels, self.zero)


def _spread(t: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor | None:
    """With a last dimension of 1 where x has one more."""
    return t if t is None or t.dim() == x.dim() else t[..., None]


def scheme_for(step: Quantize, columns: int, dtype: torch.dtype = torch.float16, exponent: int = 0, zero: bool = False) -> Scheme:
    """For matrices of so many columns; what depends on their values is given (see `Scheme`)."""
    offset = "none" if step.symmetric else step.zero_point
    levels = affine.Unsigned(step.num_bits) if offset == "float" else uniform.Levels(step.num_bits, step.type == "float")
    levels = Table(normal_levels(step.num_bits)) if step.type == "nf" else levels
    size = step.group_size if step.strategy == "group" else max(1, columns)
    return Scheme(levels, size, step.scale_search, offset, dtype, step.scale_bits, exponent, zero)


def scheme_of(step: Quantize, matrix: torch.Tensor, scale_dtype: torch.dtype | None = None) -> Scheme:
    """For a matrix [O, I] of any floating dtype, finite.

    Args:
        scale_dtype: how scales are stored; None: float16 where that keeps every scale normal, else float32.
    """
    scheme = scheme_for(step, matrix.shape[1])
    zero = scheme.offset == "float" and any(bool((part == 0).any()) for part in _parts(matrix))
    if step.scale_bits:
        largest = max((float(part.abs().max()) for part in _parts(matrix) if part.numel()), default=0.0)
        return replace(scheme, exponent=two_level.exponent_of(largest), zero=zero)
    return replace(scheme, dtype=scale_dtype or _scale_dtype(matrix, scheme.group_size, scheme.levels), zero=zero)


def single(part: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """float32, and so far from its limits that what an offset adds is finite."""
    return part.float().clamp(-_LARGEST / 4, _LARGEST / 4) if scheme.offset == "float" else part.float()


def _parts(matrix: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return matrix.split(max(1, portion(matrix.device) // max(1, matrix.shape[1])))


def _scale_dtype(matrix: torch.Tensor, size: int, levels: uniform.Levels | affine.Unsigned | Table) -> torch.dtype:
    """float16 when no group's absmax scale comes near its limits (a search moves a scale by a factor below 4)."""
    if native.takes(matrix):
        least, most = native.extents(matrix, size)
        return torch.float32 if least / levels.half_range < 4 * _HALF.tiny or most / levels.half_range > _HALF.max / 4 else torch.float16
    for part in _parts(matrix):
        x = torch.nn.functional.pad(part.float(), (0, -part.shape[1] % size)).unflatten(1, (-1, size))
        used = uniform.absmax_scale(x, levels)[(x != 0).any(-1, keepdim=True)]
        if used.numel() and (used.min() < 4 * _HALF.tiny or used.max() > _HALF.max / 4):
            return torch.float32
    return torch.float16


def assembled(scheme: Scheme, codes: torch.Tensor, p: Parameters, step: Quantize, transposed: bool = False, experts: int | None = None, inputs: torch.Tensor | None = None) -> Quantized | Grid:
    """Args: inputs: [1 or E, I], see `Grid`. codes: [O, I] as `stored`. p: of all rows and groups, of one ([1, 1]), or of each expert ([E, 1])."""
    size = scheme.group_size if step.strategy == "group" else max(1, codes.shape[1])
    table = scheme.levels.tensor(codes.device) if isinstance(scheme.levels, Table) else None
    if step.plain_scales:
        return Quantized(codes, p.scale.to(scheme.dtype), None if p.zero_point is None else p.zero_point.to(torch.int8), size, step, transposed, experts)

    def factors(floats: torch.Tensor, integers: torch.Tensor | None, above: torch.Tensor | None, signed: bool) -> Factors:
        if integers is None:
            return Factors(floats.to(scheme.dtype))
        return Factors(integers.to(torch.int8 if signed else torch.uint8), above.half(), SUPER // size, scheme.scale_bits, scheme.exponent)

    if codes.dtype == torch.int8:
        codes = (codes.short() - int(scheme.levels.low)).to(torch.uint8)
    offset = None if p.offset is None else factors(p.offset, p.offset_codes, p.offset_above, False)
    return Grid(codes, factors(p.scale, p.scale_codes, p.scale_above, offset is None), offset, size, step, table, scheme.zero, transposed, experts, None if inputs is None else Factors(inputs.half()))
