"""Output formats by name: how each is written, and how each is opened again to be held against what was meant."""

from __future__ import annotations

from pathlib import Path

from worker.checkpoint import Checkpoint
from worker.formats.compressed_tensors import CompressedTensorsReader, CompressedTensorsWriter
from worker.formats.packed import PACKED_NAME, PackedWriter, open_packed
from worker.formats.pt2_writer import Pt2Reader, Pt2Writer
from worker.formats.safetensors_writer import SafetensorsReader, SafetensorsWriter
from worker.plan import TensorPlan

WRITERS = {
    "packed": lambda files, checkpoint, plans: PackedWriter(files / PACKED_NAME, checkpoint),
    "safetensors": SafetensorsWriter,
    "compressed-tensors": CompressedTensorsWriter,
    "pt2": Pt2Writer,
}

READERS = {
    "packed": lambda files: open_packed(files / PACKED_NAME),
    "safetensors": SafetensorsReader,
    "compressed-tensors": CompressedTensorsReader,
    "pt2": Pt2Reader,
}


def open_writer(output: str, files: Path, checkpoint: Checkpoint, plans: dict[str, TensorPlan]):
    """Something with `write(encoded) -> bytes stored` and `finish()`."""
    return WRITERS[output](files, checkpoint, plans)


def reopen(output: str, files: Path):
    """A context manager with `read(name)`, `stored_bytes(name)` and `reader`, the name of the library that reads."""
    return READERS[output](files)
