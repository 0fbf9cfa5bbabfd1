"""Writes `safetensors`: exact headers first, then tensors as they come, one file per weight file of the input."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open

from app.layout import Entry, Folder, dense_parts, header
from worker.checkpoint import NAMES, Checkpoint
from worker.encoded import Encoded


class Shard:
    """One safetensors file. Tensors must come in the order of the entries."""

    def __init__(self, path: Path, entries: Iterable[Entry]):
        self.entries = list(entries)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("wb")
        self.file.write(header(self.entries))
        self.waiting = iter(self.entries)

    def write(self, tensor: torch.Tensor) -> int:
        """The next tensor's bytes. Returns how many."""
        entry = next(self.waiting)
        if (NAMES[tensor.dtype], tuple(tensor.shape)) != (entry.dtype, entry.shape):
            raise ValueError(f"{entry.name} is {NAMES[tensor.dtype]} {tuple(tensor.shape)}, announced as {entry.dtype} {entry.shape}")
        return self.file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())

    def close(self) -> None:
        self.file.close()
        if left := next(self.waiting, None):
            raise ValueError(f"{left.name} was announced and never written")


class FolderWriter:
    """Args:
    out: the folder of the result.
    layout: its files; every tensor of the checkpoint has its entries there.
    """

    def __init__(self, out: Path, layout: Folder):
        self.out, self.layout, self.checkpoint = out, layout, layout.model
        self.shards = {f: Shard(out / layout.paths[f], entries) for f, entries in layout.entries.items()}

    def put(self, name: str, tensors: Iterable[torch.Tensor]) -> int:
        """The tensors of `layout.parts[name]`. Returns their bytes."""
        shard = self.shards[self.checkpoint.tensors[name].file]
        return sum(shard.write(t) for t in tensors)

    def finish(self) -> None:
        """Close the shards; write the index where there are several; copy every other file."""
        for shard in self.shards.values():
            shard.close()
        if index := self.layout.weight_map():
            (self.out / index[0]).write_bytes(index[1])
        for rel in self.layout.beside():
            if not (self.out / rel).exists():
                (self.out / rel).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.checkpoint.files[rel], self.out / rel)


class SafetensorsWriter(FolderWriter):
    """Dense tensors under their own names."""

    def __init__(self, out: Path, checkpoint: Checkpoint, plans: dict):
        super().__init__(out, Folder(checkpoint, dense_parts(checkpoint)))

    def write(self, encoded: Encoded) -> int:
        """Returns the bytes stored, those of further names not counted."""
        name = encoded.spec.name
        count = len(self.layout.parts[name])
        return self.put(name, [encoded.dense] * count) // count


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
