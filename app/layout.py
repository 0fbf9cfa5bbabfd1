"""How a result lies on disk as safetensors: entries, headers, shards, the index. The writers pour tensors into it, an estimate adds it up."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from app.outline import Model
from app.safetensors_header import BITS

INDEXES = (".safetensors.index.json", ".bin.index.json")
"""How the names of weight maps end."""
_BITS = BITS | {"C128": 128}  # which PyTorch has and safetensors has not


def nbytes(dtype: str, shape: Iterable[int]) -> int:
    """Bytes of a tensor."""
    return math.prod(shape) * _BITS[dtype] // 8


@dataclass(frozen=True)
class Entry:
    """A tensor to come: its name, dtype (by safetensors' name) and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return nbytes(self.dtype, self.shape)


def header(entries: Iterable[Entry]) -> bytes:
    """The head of a safetensors file: the length and the JSON, padded to 8 bytes."""
    fields, at = {"__metadata__": {"format": "pt"}}, 0
    for e in entries:
        fields[e.name] = {"dtype": e.dtype, "shape": list(e.shape), "data_offsets": [at, at + e.nbytes]}
        at += e.nbytes
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class Folder:
    """The files of a result: a shard for each weight file of the input, the weight map of several, and every other file as it is.

    Args:
        parts: tensor name -> the entries that it becomes, for every tensor of the model, in its order.
    """

    def __init__(self, model: Model, parts: dict[str, list[Entry]]):
        self.model, self.parts = model, parts
        self.paths = {f: shard_path(f) for f in model.weight_files}
        self.entries: dict[str, list[Entry]] = {f: [] for f in model.weight_files}
        for name, entries in parts.items():
            self.entries[model.tensors[name].file] += entries
        self.indexes = [f for f in model.files if f.endswith(INDEXES)]

    def weight_map(self) -> tuple[str, bytes] | None:
        """Path and text of the index; None where there is one shard."""
        if len(self.paths) < 2:
            return None
        first = next(iter(self.paths.values()))
        path = index_path(self.indexes[0]) if self.indexes else str(PurePosixPath(first).with_name("model.safetensors.index.json"))
        where = {e.name: PurePosixPath(self.paths[f]).name for f, entries in self.entries.items() for e in entries}
        total = sum(e.nbytes for entries in self.entries.values() for e in entries)
        return path, (json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=2) + "\n").encode()

    def beside(self) -> list[str]:
        """The files that are copied unless the format writes one of that path itself."""
        return [f for f in self.model.files if f not in self.model.weight_files and f not in self.indexes]


def dense_parts(model: Model) -> dict[str, list[Entry]]:
    """Every tensor under its own name; a tied tensor is written under each of its names, since readers expect them all."""
    names = {name: [name] for name in model.tensors}
    for alias, name in model.aliases.items():
        names[name].append(alias)
    return {n: [Entry(alias, model.tensors[n].dtype, model.tensors[n].shape) for alias in aliases] for n, aliases in names.items()}


def shard_path(path: str) -> str:
    """Where a result has the tensors of a weight file: the same name as safetensors, and `model` for transformers' `pytorch_model`."""
    p = PurePosixPath(path)
    if p.suffix == ".safetensors":
        return path
    stem = "model" + p.stem.removeprefix("pytorch_model") if p.stem.startswith("pytorch_model") else p.stem
    return str(p.with_name(stem + ".safetensors"))


def index_path(path: str) -> str:
    """The weight map beside the shards of `shard_path`."""
    p = PurePosixPath(path)
    return path if p.name.endswith(INDEXES[0]) else str(p.with_name(shard_path(p.name.removesuffix(".index.json")).rsplit("/")[-1] + ".index.json"))
