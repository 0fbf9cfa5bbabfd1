"""What every reader yields and every method works on: a model's tensors, mapped, and the files around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from app.formats import Limits
from app.outline import TensorSpec

if TYPE_CHECKING:
    from worker.narrowing import Shrunk

__all__ = ["DTYPES", "NAMES", "Checkpoint", "Dropped", "Limits", "Segment", "TensorSpec"]

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "BOOL": torch.bool, "C64": torch.complex64, "C128": torch.complex128,
}  # fmt: skip
"""safetensors' dtype names and torch's."""

NAMES = {v: k for k, v in DTYPES.items()}


@dataclass(frozen=True)
class Segment:
    """A run of bytes of a file that holds elements of one dtype: what the lossless coder splits into planes.

    In a safetensors file a segment is a tensor; in a torch zip it is a storage (several tensors may view it). Segments are sorted by
    offset and do not overlap; the bytes between them (headers, pickles, zip records) are gaps.
    """

    offset: int
    nbytes: int
    dtype: str
    name: str  # a tensor's, or the storage's record in the zip
    shape: tuple[int, ...] = ()
    tensors: tuple[str, ...] = ()  # the names in Checkpoint.tensors and .aliases that live in it


@dataclass(frozen=True)
class Dropped:
    """Something of the input that a lossy result does not carry: optimizer state, a Python scalar, ...

    `kept_in` is the output format that carries it nevertheless.
    """

    name: str
    nbytes: int
    reason: str
    kept_in: str | None = None


@dataclass
class Checkpoint:
    """A model opened for reading. Made by `worker.formats.open_checkpoint`; nothing is read until `read` is called.

    Attributes:
        root: the folder that `files` are in (the input folder, or the scratch folder into which an archive was extracted).
        files: every regular file by its relative POSIX path, sorted by path.
        weight_files: those of them that hold `tensors`, in order.
        tensors: in the order of the source, ties stored once.
        aliases: names of tied tensors -> the name in `tensors` that holds the same memory (same dtype, shape and strides).
        dropped: see `Dropped`.
        config: the parsed config.json, or None.
        container: what the user uploaded: safetensors, torch, pt2, folder, zip or tar (for the report).
        metadata: safetensors `__metadata__` by file.
        load: name -> the tensor: a view on the map or a fresh tensor, contiguous; never written to by callers.
        segments: file -> its segments (weight files only).
        offsets: tensor -> where its bytes lie in its file; not of those that lie apart or deflated.
        program: of a `.pt2`: the opened file, with what may be loaded of it.
        close: unmaps everything.
        shrunk, whole: where it has been made narrower (`worker.narrowing`), by which tensors, and of which checkpoint.
    """

    root: Path
    files: dict[str, Path]
    weight_files: tuple[str, ...]
    tensors: dict[str, TensorSpec]
    aliases: dict[str, str]
    dropped: list[Dropped]
    config: dict | None
    container: str
    metadata: dict[str, dict[str, str]]
    load: Callable[[str], torch.Tensor]
    segments: dict[str, list[Segment]]
    close: Callable[[], None] = lambda: None
    notes: list[str] = field(default_factory=list)  # sentences for the report
    offsets: dict[str, int] = field(default_factory=dict)
    program: Any = None  # worker.formats.pt2_file.Pt2File
    shrunk: Mapping[str, Shrunk] = field(default_factory=dict)
    whole: Checkpoint | None = None

    def read(self, name: str) -> torch.Tensor:
        return self.load(name)
