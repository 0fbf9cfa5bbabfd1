"""Writes `safetensors`: exact headers first, then tensors as they come, one file per weight file of the input."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from worker.checkpoint import DTYPES, NAMES, Checkpoint
from worker.encoded import Encoded
from worker.formats.packed_writer import index_path, shard_path

_INDEXES = (".safetensors.index.json", ".bin.index.json")


@dataclass(frozen=True)
class Entry:
    """A tensor to come: its name, dtype (a torch dtype) and shape."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class Shard:
    """One safetensors file. Tensors must come in the order of the entries."""

    def __init__(self, path: Path, entries: Iterable[Entry]):
        self.entries, header, at = list(entries), {"__metadata__": {"format": "pt"}}, 0
        for e in self.entries:
            header[e.name] = {"dtype": NAMES[e.dtype], "shape": list(e.shape), "data_offsets": [at, at + e.nbytes]}
            at += e.nbytes
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("wb")
        self.file.write(struct.pack("<Q", len(text)) + text)
        self.waiting = iter(self.entries)

    def write(self, tensor: torch.Tensor) -> int:
        """The next tensor's bytes. Returns how many."""
        entry = next(self.waiting)
        if (tensor.dtype, tuple(tensor.shape)) != (entry.dtype, entry.shape):
            raise ValueError(f"{entry.name} is {tensor.dtype} {tuple(tensor.shape)}, announced as {entry.dtype} {entry.shape}")
        return self.file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())

    def close(self) -> None:
        self.file.close()
        if left := next(self.waiting, None):
            raise ValueError(f"{left.name} was announced and never written")


class FolderWriter:
    """Args:
    out: the folder of the result.
    parts: tensor name -> the entries that it becomes, for every tensor of the checkpoint, in its order.
    """

    def __init__(self, out: Path, checkpoint: Checkpoint, parts: dict[str, list[Entry]]):
        self.out, self.checkpoint, self.parts = out, checkpoint, parts
        self.paths = {f: shard_path(f) for f in checkpoint.weight_files}
        by_file = {f: [] for f in checkpoint.weight_files}
        for name, entries in parts.items():
            by_file[checkpoint.tensors[name].file] += entries
        self.shards = {f: Shard(out / self.paths[f], entries) for f, entries in by_file.items()}
        self.weight_map = {e.name: Path(self.paths[f]).name for f, entries in by_file.items() for e in entries}
        self.total = sum(e.nbytes for entries in parts.values() for e in entries)

    def put(self, name: str, tensors: Iterable[torch.Tensor]) -> int:
        """The tensors of `parts[name]`. Returns their bytes."""
        shard = self.shards[self.checkpoint.tensors[name].file]
        return sum(shard.write(t) for t in tensors)

    def finish(self) -> None:
        """Close the shards; write the index where there are several; copy every other file."""
        for shard in self.shards.values():
            shard.close()
        c = self.checkpoint
        indexes = [f for f in c.files if f.endswith(_INDEXES)]
        if len(self.shards) > 1:
            first = next(iter(self.paths.values()))
            target = self.out / (index_path(indexes[0]) if indexes else str(Path(first).with_name("model.safetensors.index.json")))
            target.write_text(json.dumps({"metadata": {"total_size": self.total}, "weight_map": self.weight_map}, indent=2) + "\n")
        for rel, path in c.files.items():
            if rel not in c.weight_files and rel not in indexes and not (self.out / rel).exists():
                (self.out / rel).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, self.out / rel)


class SafetensorsWriter(FolderWriter):
    """Dense tensors under their own names; a tied tensor is written under each of its names, since readers expect them all."""

    def __init__(self, out: Path, checkpoint: Checkpoint, plans: dict):
        self.names = {name: [name] for name in checkpoint.tensors}
        for alias, name in checkpoint.aliases.items():
            self.names[name].append(alias)
        super().__init__(out, checkpoint, {n: [_entry(checkpoint, n, a) for a in names] for n, names in self.names.items()})

    def write(self, encoded: Encoded) -> int:
        """Returns the bytes stored, those of further names not counted."""
        name = encoded.spec.name
        return self.put(name, [encoded.dense] * len(self.names[name])) // len(self.names[name])


def _entry(checkpoint: Checkpoint, name: str, alias: str) -> Entry:
    spec = checkpoint.tensors[name]
    return Entry(alias, DTYPES[spec.dtype], spec.shape)


class SafetensorsReader:
    """The files of a result, opened by the safetensors library."""

    reader = "safetensors"

    def __init__(self, folder: Path):
        self.files = [safe_open(p, "pt") for p in sorted(folder.rglob("*.safetensors"))]
        self.where = {name: f for f in self.files for name in f.keys()}

    def __enter__(self) -> SafetensorsReader:
        return self

    def __exit__(self, *_) -> None:
        self.where.clear()
        self.files.clear()

    def tensor(self, name: str) -> torch.Tensor:
        return self.where[name].get_tensor(name)

    def read(self, name: str) -> torch.Tensor:
        return self.tensor(name)

    def stored_bytes(self, name: str) -> int:
        return self.tensor(name).nbytes

    def names(self) -> Iterator[str]:
        yield from self.where
