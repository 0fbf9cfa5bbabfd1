"""Tensors that view storages, as PyTorch writes them: each storage is a record of a zip, and several tensors may lie in one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from worker.checkpoint import DTYPES, Segment
from worker.formats.mapped import map_range
from worker.formats.pickle_tensors import SIZES, Tensor


@dataclass(frozen=True)
class Record:
    """Where a storage's bytes lie: in the checkpoint, or, where they were deflated, in a file in scratch."""

    path: Path
    offset: int
    nbytes: int


def tied(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The first name of each view, and for the others the name that stands for them."""
    first: dict[Tensor, str] = {}
    aliases = {name: same for name, tensor in tensors.items() if (same := first.setdefault(tensor, name)) != name}
    return {name: tensor for name, tensor in tensors.items() if name not in aliases}, aliases


class Views:
    """A weight file's `tensors`, `aliases` and `records`; `folder` + a storage's key is the name of its record."""

    folder = "data/"
    path: Path
    tensors: dict[str, Tensor]
    aliases: dict[str, str]
    records: dict[str, Record]

    def record(self, tensor: Tensor) -> Record:
        return self.records[self.folder + tensor.storage.key]

    @property
    def segments(self) -> list[Segment]:
        """Storages that lie in the file as they are; an untyped one has the dtype of its tensors where they agree."""
        views: dict[str, list[str]] = {}
        for name in (*self.tensors, *self.aliases):
            views.setdefault(self.folder + self.tensors[self.aliases.get(name, name)].storage.key, []).append(name)
        out = []
        for name, record in self.records.items():
            if not name.startswith(self.folder) or record.path != self.path or not record.nbytes:
                continue
            names = tuple(views.get(name, ()))
            dtypes = {self.tensors[self.aliases.get(n, n)].dtype for n in names}
            dtype = dtypes.pop() if len(dtypes) == 1 else "U8"
            if record.nbytes % SIZES[dtype]:
                dtype = "U8"
            out.append(Segment(record.offset, record.nbytes, dtype, name, (record.nbytes // SIZES[dtype],), names))
        return sorted(out, key=lambda s: s.offset)

    @property
    def offsets(self) -> dict[str, int]:
        """Where a tensor's bytes lie in the file in one piece; a transposed one's are in the storage's order."""
        records = {n: self.record(t) for n, t in self.tensors.items()}
        whole = {n: t for n, t in self.tensors.items() if records[n].path == self.path and t.last - t.offset == t.numel}
        return {n: records[n].offset + t.offset * SIZES[t.dtype] for n, t in whole.items()}

    def load(self, name: str) -> torch.Tensor:
        return self.values(self.tensors[name])

    def values(self, t: Tensor) -> torch.Tensor:
        record, size = self.record(t), SIZES[t.dtype]
        if not t.numel:
            return torch.empty(t.shape, dtype=DTYPES[t.dtype])
        flat = map_range(record.path, record.offset + t.offset * size, (t.last - t.offset) * size, DTYPES[t.dtype])
        return flat.as_strided(t.shape, t.stride).contiguous()
