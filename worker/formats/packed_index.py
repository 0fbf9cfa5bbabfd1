"""The index of a packed file: what its payloads are, and what they are put together to. Everything in it is checked before anything is decoded.

Two kinds. `files`: the original files, byte for byte: segments (each a payload) at their offsets, and all other bytes of all files, one after
another, in the payload `rest`. `tensors`: the tensors of a lossy result by name, and the files kept around them (again in `rest`).
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from app.errors import InputRefused
from app.limits import Limits, check_path, check_tensor_name, shown
from app.safetensors_header import check_json
from worker.checkpoint import DTYPES
from worker.kernels.chunks import Layout

_KINDS = {
    **dict.fromkeys(("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "C64", "C128"), "float"),
    **dict.fromkeys(("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL", "F8_E8M0"), "int"),
}
Natural = Annotated[int, Field(ge=0, lt=1 << 53)]
Shape = tuple[Natural, ...]
BUNDLE_VALUES = 1 << 19  # of all tensors in the bundle: some of them may take microseconds each to decode
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


def refuse(why: str) -> InputRefused:
    return InputRefused("invalid-packed", why)


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
    group_size: Annotated[int, Field(ge=1, lt=1 << 53)]
    scale_dtype: Literal["F64", "F32", "F16", "BF16"]
    scale_shape: tuple[Natural, Natural]
    sections: Annotated[tuple[Natural, ...], Field(min_length=2, max_length=3)]
    step: Natural | None = None  # of Index.steps

    @property
    def beside(self) -> int:
        """Scales and zero points."""
        return math.prod(self.scale_shape) * (len(self.sections) - 1)


class PackedCodebook(_Strict):
    """Codes of a matrix [rows, columns] and the levels [codebooks, levels of each] that they stand for. `sections`: bytes of the payloads codes, levels."""

    type: Literal["codebook"]
    num_bits: Annotated[int, Field(ge=1, le=8)]
    rows: Natural
    columns: Natural
    transposed: bool = False
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
    quantized: Annotated[PackedQuantized | PackedCodebook, Field(discriminator="type")] | None = None

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


def parse_index(text: bytes, payloads: set[str], size: int, limits: Limits) -> Index:
    """Parse and check an index.

    Args:
        text: JSON.
        payloads: the names of the file's payloads, without the index itself.
        size: of the packed file, bytes.

    Raises:
        InputRefused: invalid-packed.
    """
    try:
        check_json(text, limits, pairs=20 * limits.tensors, containers=6 * limits.tensors)
        index = Index.model_validate_json(text)
        _check_paths(index, limits)
        for name in (*(t.name for t in index.tensors), *index.aliases):
            check_tensor_name(name, limits)
    except ValidationError as e:
        error = e.errors(include_url=False, include_input=False)[0]
        raise refuse(f"the index is wrong at {shown('/'.join(map(str, error['loc'])))}: {error['msg'][:200]}") from None
    except InputRefused as e:
        raise refuse(f"the index is refused: {e.detail}") from None
    _check_files(index)
    _check_tensors(index, limits)
    used = [*(s.payload for f in index.files for s in f.segments), *(t.payload for t in index.tensors if t.payload is not None)]
    used += [name for name in (index.rest, index.bundle) if name is not None]
    if len(set(used)) != len(used) or set(used) != payloads:
        raise refuse("the index does not use every payload exactly once")
    if (total := index.restored_bytes()) > limits.expanded(size):
        raise refuse(f"{size} bytes claim to restore to {total}; at most {limits.expanded(size)} are taken")
    return index


def _check_paths(index: Index, limits: Limits) -> None:
    """Paths are safe, and no two of them are one file, or a file and a folder, on any system."""
    paths = [*(f.path for f in index.files), *(s.path for s in index.shards), *([index.shard_index] if index.shard_index else ())]
    folded = set()
    for path in paths:
        check_path(path, limits)
        folded.add(unicodedata.normalize("NFC", path).casefold())
    if len(folded) != len(paths):
        raise refuse("two of the index's paths are the same")
    for path in folded:
        parts = path.split("/")
        if any("/".join(parts[:n]) in folded for n in range(1, len(parts))):
            raise refuse(f"path {shown(path)} lies inside another file")


def _check_files(index: Index) -> None:
    for f in index.files:
        if any(begin > end for begin, end in f.gaps()):
            raise refuse(f"the segments of {shown(f.path)} overlap or leave the file")
        for s in f.segments:
            if s.dtype not in DTYPES or math.prod(s.shape) * DTYPES[s.dtype].itemsize != s.nbytes:
                raise refuse(f"segment {shown(s.name)} has {s.nbytes} bytes, not those of {shown(s.dtype)} {list(s.shape)}")
    if (index.rest is not None) != (index.rest_bytes > 0):
        raise refuse("the payload of the bytes between the segments does not belong to them")
    if index.kind == "files" and (index.tensors or index.shards or index.shard_index or index.aliases or index.bundle):
        raise refuse("an index of kind files has tensors")


def _check_tensors(index: Index, limits: Limits) -> None:
    names = {t.name for t in index.tensors}
    if len(names) != len(index.tensors) or names & index.aliases.keys() or not names.issuperset(index.aliases.values()):
        raise refuse("names of tensors occur twice, or an alias stands for no tensor")
    bundled = [t for t in index.tensors if t.payload is None]
    if any((t.payload is None and t.quantized is None) != (t.size is not None) for t in index.tensors):
        raise refuse("a tensor has neither a payload nor a size in the bundle, or both")
    for t in index.tensors:
        if t.dtype not in DTYPES or t.shard >= len(index.shards) or len(t.shape) > limits.rank:
            raise refuse(f"tensor {shown(t.name)} has dtype {shown(t.dtype)}, shard {t.shard}, {len(t.shape)} dimensions")
        if q := t.quantized:
            fits = q.rows * q.columns == math.prod(t.shape) and (not q.transposed or t.shape == (q.columns, q.rows))
            fits &= q.step is None or q.step < len(index.steps)
            fits &= _levels_fit(q) if isinstance(q, PackedCodebook) else _scales_fit(q)
            if not fits or DTYPES[t.dtype].is_complex or not DTYPES[t.dtype].is_floating_point:
                beside = f"levels {list(q.levels_shape)}" if isinstance(q, PackedCodebook) else f"scales {list(q.scale_shape)}"
                raise refuse(f"codes [{q.rows}, {q.columns}] with {beside} do not make tensor {shown(t.name)} of {t.dtype} {list(t.shape)}")
    if sum(t.values for t in bundled) > BUNDLE_VALUES or any(t.bundled for t in bundled) != (index.bundle is not None):
        raise refuse(f"the bundle has more than {BUNDLE_VALUES} values, or is there for no tensor")


def _scales_fit(q: PackedQuantized) -> bool:
    rows, groups = q.scale_shape
    return rows in (1, q.rows) and groups == _groups(q) and (q.type == "int" or (q.num_bits == 8 and len(q.sections) == 2))


def _levels_fit(q: PackedCodebook) -> bool:
    codebooks, levels = q.levels_shape
    return codebooks in (1, q.rows * _groups(q)) and levels <= 1 << q.num_bits


def _groups(q: PackedQuantized | PackedCodebook) -> int:
    """Groups in a row."""
    return max(1, -(-q.columns // q.group_size))
