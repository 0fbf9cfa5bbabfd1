"""Tensors over a mapped range of a file: no copy, and nothing stays mapped once the tensor is gone."""

from __future__ import annotations

import mmap
from pathlib import Path

import torch


def map_range(path: Path, offset: int, nbytes: int, dtype: torch.dtype) -> torch.Tensor:
    """A 1-D tensor of `dtype` over `nbytes` bytes at `offset`.

    The map is private and copy-on-write, so that a careless writer changes neither the file nor crashes the process, and without reserve, so
    that it does not count as memory. One map for each tensor bounds the address space by the tensors alive, whatever the file's size.
    """
    if nbytes == 0:
        return torch.empty(0, dtype=dtype)
    start = offset - offset % mmap.ALLOCATIONGRANULARITY
    with path.open("rb") as f:
        flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)
        mapped = mmap.mmap(f.fileno(), nbytes + offset - start, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE, offset=start)
    data = torch.frombuffer(mapped, dtype=torch.uint8, count=nbytes, offset=offset - start)
    if offset % dtype.itemsize:
        data = data.clone()  # torch may not read elements at unaligned addresses
    return data.view(dtype)
