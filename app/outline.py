"""What the headers of a model tell of it, without a byte of its tensors: names, shapes, dtypes, sizes of files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from app.errors import InputRefused
from app.formats import TORCH, suffix
from app.limits import Limits, shown
from app.safetensors_header import BITS, PACKED, SafetensorsHeader
from app.sensitive import strips
from app.shards import Read, choose, join, main_folder, parent, read_config

READABLE = frozenset(BITS) - {"F6_E2M3", "F6_E3M2", "F4"}
"""dtypes that a worker reads."""


@dataclass(frozen=True)
class TensorSpec:
    """A tensor as its header describes it.

    `dtype` is a dtype's name as safetensors has it. `file` is the path of the file that holds it. `nbytes` counts its elements.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    file: str


class Model(Protocol):
    """What an outline and an opened checkpoint have in common. `files` has every path; see `Outline` for the rest."""

    files: Mapping[str, Any]
    weight_files: tuple[str, ...]
    tensors: dict[str, TensorSpec]
    aliases: dict[str, str]
    config: dict | None
    metadata: dict[str, dict[str, str]]


@dataclass(frozen=True)
class Outline:
    """A model without its bytes.

    Attributes:
        files: size of every file by its relative POSIX path, sorted by path.
        weight_files: those of them whose tensors a job reads, in order.
        tensors: in the order of the headers.
        offsets: tensor name -> where its bytes begin in its file, where they lie there in one piece.
        config: the parsed config.json, or None.
        metadata: safetensors `__metadata__` by file.
        aliases: tied names -> the tensor that holds their bytes; safetensors files have none.
    """

    files: dict[str, int]
    weight_files: tuple[str, ...]
    tensors: dict[str, TensorSpec]
    offsets: dict[str, int]
    config: dict | None = None
    metadata: dict[str, dict[str, str]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _File:
    """What `app.shards.choose` asks of a weight file."""

    header: SafetensorsHeader
    specs: dict[str, TensorSpec]
    aliases: dict[str, str] = field(default_factory=dict)


def outline(files: Mapping[str, int], headers: Mapping[str, SafetensorsHeader], read: Read, limits: Limits = Limits()) -> Outline | None:
    """The model that these files are, by the rules of the reader (`worker.formats.open_checkpoint`).

    Args:
        headers: of the safetensors files among `files`.
        read: for config.json and the index.

    Returns:
        None where the weights are in a file that tells nothing before it is parsed (PyTorch, an archive, packed).

    Raises:
        InputRefused: no-tensors, unsupported-format, invalid-hf and what reading JSON raises.
    """
    files = dict(sorted(files.items()))
    weights = {path: _File(h, _specs(path, h)) for path, h in headers.items()}
    config, packed = None, any(h.metadata.get("format") == PACKED for h in headers.values())
    if len(files) > 1:
        if packed:
            raise InputRefused("unsupported-format", "a packed file is an input on its own; upload it alone")
        others = {path for path in files if suffix(path) in TORCH and not strips(path)}
        if not (found := [p for p in files if p in weights or p in others]):
            raise InputRefused("no-tensors", f"there are no weights among {len(files)} files; read are .safetensors, .pt, .pth, .bin and .ckpt")
        folder = main_folder(found, files)
        weights = choose(folder, {p: w for p, w in weights.items() if parent(p) == folder}, files, read, limits, [])
        path = join(folder, "config.json")
        config = read_config(read, path, limits) if path in files else None
    if not weights or packed:
        return None
    tensors = {name: spec for w in weights.values() for name, spec in w.specs.items()}
    if not tensors:
        raise InputRefused("no-tensors", "the file holds no tensor")
    offsets = {name: w.header.data_start + e.begin for w in weights.values() for name, e in w.header.entries.items()}
    return Outline(files, tuple(weights), tensors, offsets, config, {p: w.header.metadata for p, w in weights.items() if w.header.metadata})


def _specs(path: str, header: SafetensorsHeader) -> dict[str, TensorSpec]:
    for name, e in header.entries.items():
        if e.dtype not in READABLE:
            raise InputRefused("unsupported-format", f"tensor {shown(name)} has dtype {e.dtype}, which is not read; read are {', '.join(sorted(READABLE))}")
    return {n: TensorSpec(n, e.dtype, e.shape, e.end - e.begin, path) for n, e in header.entries.items()}
