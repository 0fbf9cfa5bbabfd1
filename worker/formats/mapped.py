"""Tensors over a mapped range of a file: no copy, and nothing stays mapped once the tensor is gone."""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from pathlib import Path

import torch

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_FAILED = ctypes.c_void_p(-1).value
_FLAGS = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)


def map_range(path: Path, offset: int, nbytes: int, dtype: torch.dtype) -> torch.Tensor:
    """A 1-D tensor of `dtype` over `nbytes` bytes at `offset`.

    The map is private and copy-on-write, so that a careless writer changes neither the file nor crashes the process, and without reserve, so
    that it does not count as memory. One map for each tensor bounds the address space by the tensors alive, whatever the file's size.

    Raises:
        OSError: the file cannot be opened or mapped. ValueError: it ends before that.
    """
    if nbytes == 0:
        return torch.empty(0, dtype=dtype)
    start = offset - offset % mmap.ALLOCATIONGRANULARITY
    with path.open("rb") as f:
        if os.fstat(f.fileno()).st_size < offset + nbytes:
            raise ValueError(f"{path.name} ends before byte {offset + nbytes}")
        mapped = _map(f.fileno(), start, nbytes + offset - start)
    data = torch.frombuffer(mapped, dtype=torch.uint8, count=nbytes, offset=offset - start)
    if offset % dtype.itemsize:
        data = data.clone()  # torch may not read elements at unaligned addresses
    return data.view(dtype)


def _map(fd: int, start: int, length: int) -> ctypes.Array:
    """By the C library: Python's own maps each keep a descriptor open, and a model that runs has more tensors than a jailed process may have of these."""
    address = _libc.mmap(None, length, mmap.PROT_READ | mmap.PROT_WRITE, _FLAGS, fd, start)
    if address == _FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    mapped = (ctypes.c_char * length).from_address(address)
    weakref.finalize(mapped, _libc.munmap, address, length).atexit = False
    return mapped
