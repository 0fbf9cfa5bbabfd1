"""Reads a safetensors file: the header by the one strict parser, the tensors by mapping them."""

from __future__ import annotations

from pathlib import Path

import torch

from app.errors import InputRefused
from app.formats import SafetensorsHeader, header_bytes_needed, parse_safetensors_header
from app.limits import Limits, shown
from worker.checkpoint import DTYPES, Segment, TensorSpec
from worker.formats.mapped import map_range


def read_header(path: Path, limits: Limits = Limits()) -> SafetensorsHeader:
    """Raises: see `parse_safetensors_header`."""
    size = path.stat().st_size
    with path.open("rb") as f:
        first = f.read(8)
        return parse_safetensors_header(first + f.read(header_bytes_needed(first) - 8), size, limits)


class SafetensorsFile:
    """One file's tensors; `rel` is its path in the checkpoint.

    Raises:
        InputRefused: what `parse_safetensors_header` raises, or unsupported-format for a dtype that torch lacks.
    """

    def __init__(self, path: Path, rel: str, limits: Limits):
        self.path, self.header = path, read_header(path, limits)
        for name, e in self.header.entries.items():
            if e.dtype not in DTYPES:
                raise InputRefused("unsupported-format", f"tensor {shown(name)} has dtype {e.dtype}, which is not read; read are {', '.join(DTYPES)}")
        self.metadata = self.header.metadata
        self.specs = {n: TensorSpec(n, e.dtype, e.shape, e.end - e.begin, rel) for n, e in self.header.entries.items()}
        self.aliases: dict[str, str] = {}
        self.dropped: list = []
        self.notes: list[str] = []

    @property
    def offsets(self) -> dict[str, int]:
        return {n: self.header.data_start + e.begin for n, e in self.header.entries.items()}

    @property
    def segments(self) -> list[Segment]:
        start = self.header.data_start
        entries = sorted(self.header.entries.items(), key=lambda item: item[1].begin)
        return [Segment(start + e.begin, e.end - e.begin, e.dtype, n, e.shape, (n,)) for n, e in entries if e.end > e.begin]

    def load(self, name: str) -> torch.Tensor:
        e = self.header.entries[name]
        return map_range(self.path, self.header.data_start + e.begin, e.end - e.begin, DTYPES[e.dtype]).view(e.shape)
