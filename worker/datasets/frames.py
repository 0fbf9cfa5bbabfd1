"""A file of byte strings, one after another, written and read in their order.

    ┌ length: u64, little-endian ┬ bytes ┐ ┌ length ┬ bytes ┐ ...
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from worker.datasets.refusals import damaged

_LENGTH = struct.Struct("<Q")


class FrameWriter:
    """Counts what it has written; `size` is that of the file so far."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file: BinaryIO = path.open("xb")
        self.size = 0

    def put(self, data: bytes) -> int:
        """Returns: the bytes that it takes in the file."""
        self.file.write(_LENGTH.pack(len(data)))
        self.file.write(data)
        self.size += (taken := _LENGTH.size + len(data))
        return taken

    def close(self) -> None:
        self.file.close()


def read_frames(path: Path, most: int) -> Iterator[bytes]:
    """The byte strings of a file.

    Args:
        most: bytes that one of them may have.

    Raises:
        InputRefused: invalid-dataset, where the file ends too early or a length is too large.
    """
    left = path.stat().st_size
    with path.open("rb") as f:
        while left:
            head = f.read(_LENGTH.size)
            if len(head) < _LENGTH.size:
                raise damaged(f"{path.name} ends within a length")
            (length,) = _LENGTH.unpack(head)
            left -= _LENGTH.size
            if length > min(left, most):
                raise damaged(f"{path.name} announces {length} bytes where {min(left, most)} may be")
            data = f.read(length)
            left -= length
            yield data
