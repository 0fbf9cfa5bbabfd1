"""The entries of a packed file's index: what its payloads are, and what they are put together to.

Two kinds. `files`: the original files, byte for byte: segments (each a payload) at their offsets, and all other bytes of all files, one after
another, in the payload `rest`. `tensors`: the tensors of a lossy result by name, and the files kept around them (again in `rest`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from worker.checkpoint import DTYPES
from worker.kernels.chunks import Layout

_KINDS = {
    **dict.fromkeys(("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "C64", "C128"), "float"),
    **dict.fromkeys(("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL", "F8_E8M0"), "int"),
}
Natural = Annotated[int, Field(ge=0, lt=1 << 53)]
Shape = tuple[Natural, ...]
Experts = Annotated[int, Field(ge=1, lt=1 << 53)]
BUNDLE_VALUES = 1 << 19  # of all tensors in the bundle: some of them may take microseconds each to decode
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


def layout_of(dtype: str, nbytes: int) -> tuple[Layout, int]:
    """How `nbytes` of a dtype are coded, and how many values they are: a complex number is two floats."""
    width = DTYPES[dtype].itemsize // (2 if dtype.startswith("C") else 1)
    return Layout(_KINDS[dtype], width), nbytes // width


def columns_of(shape: tuple[int, ...]) -> int:
    """Of a tensor that is seen as the matrix [first dimension, all others]; of one dimension or none it is one row."""
    return max(1, math.prod(shape[1:] if len(shape) > 1 else shape))


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class PackedSegment(_Strict):
    """`nbytes` bytes of a file from `offset` on, stored as `payload`."""

    payload: str
    name: str
    offset: Natural
    nbytes: Natural
    dtype: str
    shape: Shape


class PackedFile(_Strict):
    """A file that is restored byte for byte. Bytes outside its segments come from `rest`."""

    path: str
    size: Natural
    sha256: Sha256
    segments: tuple[PackedSegment, ...] = ()

    def gaps(self) -> Iterator[tuple[int, int]]:
        """(begin, end) of the bytes before, between and behind the segments."""
        at = 0
        for s in self.segments:
            yield at, s.offset
            at = s.offset + s.nbytes
        yield at, self.size


class Shard(_Strict):
    """A safetensors file that a restore of kind `tensors` writes."""

    path: str
    metadata: dict[str, str] = {}


class PackedQuantized(_Strict):
    """Codes of a matrix [rows, columns] and what they mean (see docs/packed.md). `sections`: bytes of the payloads codes, scale, zero_point."""

    type: Literal["int", "float"]
    num_bits: Annotated[int, Field(ge=1, le=8)]
    rows: Natural
    columns: Natural
    transposed: bool = False
    experts: Experts | None = None
    group_size: Annotated[int, Field(ge=1, lt=1 << 53)]
    scale_dtype: Literal["F64", "F32", "F16", "BF16"]
    scale_shape: tuple[Natural, Natural]
    sections: Annotated[tuple[Natural, ...], Field(min_length=2, max_length=3)]
    step: Natural | None = None  # of Index.steps

    @property
    def beside(self) -> int:
        """Scales and zero points."""
        return math.prod(self.scale_shape) * (len(self.sections) - 1)


class PackedGrid(_Strict):
    """Codes of a matrix [rows, columns] under scales and offsets (see docs/packed.md). `sections`: bytes of the payloads codes, with `levels` these, scale,
    with `scale_bits` the floats above it, the same of an offset, and with `inputs` what the values of each input are multiplied by."""

    type: Literal["grid"]
    num_bits: Annotated[int, Field(ge=1, le=8)]
    rows: Natural
    columns: Natural
    transposed: bool = False
    experts: Experts | None = None
    group_size: Annotated[int, Field(ge=1, lt=1 << 53)]
    scale_dtype: Literal["F32", "F16"]
    scale_shape: tuple[Natural, Natural]
    scale_bits: Annotated[int, Field(ge=2, le=8)] | None = None
    shared_by: Annotated[int, Field(ge=1, lt=1 << 53)] | None = None
    exponent: Annotated[int, Field(ge=-126, le=126)] = 0
    levels: bool = False
    offset: bool = False
    zero: bool = False
    inputs: bool = False
    sections: Annotated[tuple[Natural, ...], Field(min_length=2, max_length=6)]
    step: Natural | None = None  # of Index.steps

    @property
    def above(self) -> tuple[int, int]:
        """Shape of the floats above integers."""
        return self.scale_shape[0], -(-self.scale_shape[1] // self.each)

    @property
    def each(self) -> int:
        """Groups that share such a float."""
        return (self.shared_by or self.group_size) // self.group_size

    @property
    def factors(self) -> int:
        """1, or 2 with an offset."""
        return 1 + self.offset

    @property
    def beside(self) -> int:
        """Levels, scales, offsets, what is above them, and factors of inputs."""
        each = math.prod(self.scale_shape) + (math.prod(self.above) if self.scale_bits else 0)
        return (self.levels << self.num_bits) + self.factors * each + self.inputs * (self.experts or 1) * self.columns


class PackedCodebook(_Strict):
    """Codes of a matrix [rows, columns] and the levels [codebooks, levels of each] that they stand for. `sections`: bytes of the payloads codes, levels."""

    type: Literal["codebook"]
    num_bits: Annotated[int, Field(ge=1, le=8)]
    rows: Natural
    columns: Natural
    transposed: bool = False
    experts: Experts | None = None
    group_size: Annotated[int, Field(ge=1, lt=1 << 53)]
    levels_dtype: Literal["F32", "F16"]
    levels_shape: tuple[Natural, Annotated[int, Field(ge=1, le=256)]]
    sections: tuple[Natural, Natural]
    step: Natural | None = None  # of Index.steps

    @property
    def beside(self) -> int:
        """Levels."""
        return math.prod(self.levels_shape)

    @property
    def levels_bytes(self) -> int:
        return math.prod(self.levels_shape) * DTYPES[self.levels_dtype].itemsize


class PackedTensor(_Strict):
    """A tensor is a payload, or the next bytes of the bundle: those of its `sections` or, of one that has no codes, `size`."""

    name: str
    payload: str | None = None
    size: Natural | None = None
    shard: Natural
    dtype: str
    shape: Shape
    quantized: Annotated[PackedQuantized | PackedGrid | PackedCodebook, Field(discriminator="type")] | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    @property
    def bundled(self) -> int:
        """Bytes in the bundle."""
        return 0 if self.payload is not None else sum(self.quantized.sections) if self.quantized else self.size

    @property
    def values(self) -> int:
        """How many are coded: of complex numbers two each; codes and the scales, zero points or levels that belong to them."""
        count = math.prod(self.shape)
        if self.quantized is None:
            return layout_of(self.dtype, self.nbytes)[1]
        return count + self.quantized.beside


class Index(_Strict):
    kind: Literal["files", "tensors"]
    files: tuple[PackedFile, ...] = ()
    rest: str | None = None
    shards: tuple[Shard, ...] = ()
    shard_index: str | None = None  # path of the weight map that a restore regenerates
    tensors: tuple[PackedTensor, ...] = ()
    aliases: dict[str, str] = {}
    bundle: str | None = None
    steps: tuple[dict, ...] = ()  # the recipe's steps that made `quantized` tensors, as JSON

    @property
    def rest_bytes(self) -> int:
        return sum(end - begin for f in self.files for begin, end in f.gaps())

    def restored_bytes(self) -> int:
        """Bytes of all files, tensors and levels once restored; a tied name counts like the tensor it stands for."""
        sizes = {t.name: t.nbytes for t in self.tensors}
        levels = sum(t.quantized.levels_bytes for t in self.tensors if isinstance(t.quantized, PackedCodebook))
        return sum(f.size for f in self.files) + sum(sizes.values()) + sum(sizes[target] for target in self.aliases.values()) + levels

    def beside_bytes(self) -> int:
        """Of scales, offsets, levels and factors of inputs, float32 each, once they are read."""
        return 4 * sum(t.quantized.beside for t in self.tensors if t.quantized)
