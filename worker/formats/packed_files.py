"""Packs whole files: every byte comes back. Segments (tensors, storages) are coded as numbers, all other bytes as text."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from worker.checkpoint import DTYPES, Checkpoint, Segment
from worker.formats.mapped import map_range
from worker.formats.packed_container import REST, Container
from worker.formats.packed_entries import Index, PackedFile, PackedSegment, columns_of, layout_of
from worker.kernels.chunks import BYTES
from worker.kernels.payload import chunk_log2, chunks

_READ = 1 << chunk_log2(BYTES)


class Stored(NamedTuple):
    """What became of a segment; of all bytes outside segments where `segment` is None."""

    file: str
    segment: Segment | None
    bytes_before: int
    bytes_after: int


def pack_files(
    checkpoint: Checkpoint, out: Path, keep: Callable[[str], bool], progress: Callable[[int], None], scaled: Callable[[str], bool] = lambda name: False
) -> list[Stored]:
    """Write every file of `checkpoint` to the packed file `out`, byte for byte.

    Args:
        keep: which tensors (by name) are entropy-coded; a segment that holds none of them is stored raw.
        progress: told of bytes done, as they are.
        scaled: which of those may be coded about the scales of their rows and columns (level `max`).

    Returns:
        an entry for every segment, and one for the rest.
    """
    names = [s.name for segments in checkpoint.segments.values() for s in segments]
    stored, files = [], []
    with Container(out, names) as container, ThreadPoolExecutor(1, "sha256") as hasher:
        digests = {rel: hasher.submit(sha256, path) for rel, path in checkpoint.files.items()}
        for rel, path in checkpoint.files.items():
            packed = []
            for s in sorted(checkpoint.segments.get(rel, ()), key=lambda s: s.offset):
                packed.append(_described(container.free_name(s.name), s))
                entropy = not s.tensors or any(map(keep, s.tensors))
                columns = columns_of(packed[-1].shape) if entropy and any(map(scaled, s.tensors)) else 0
                after = _add_segment(container, path, packed[-1], entropy, columns, progress)
                stored.append(Stored(rel, s, s.nbytes, after))
            files.append(PackedFile(path=rel, size=path.stat().st_size, sha256=digests[rel].result(), segments=tuple(packed)))
        after = add_rest(container, files, checkpoint.files, progress)
        if after:
            stored.append(Stored("", None, sum(f.size for f in files) - sum(s.bytes_before for s in stored), after))
        container.finish(Index(kind="files", files=tuple(files), rest=REST if after else None))
    return stored


def _described(payload: str, s: Segment) -> PackedSegment:
    """A storage is a row of elements; bytes that are no whole elements of a known dtype are U8."""
    shape, dtype = s.shape, s.dtype
    if dtype not in DTYPES or s.nbytes % DTYPES[dtype].itemsize:
        dtype = "U8"
    if math.prod(shape) * DTYPES[dtype].itemsize != s.nbytes:
        shape = (s.nbytes // DTYPES[dtype].itemsize,)
    return PackedSegment(payload=payload, name=s.name, offset=s.offset, nbytes=s.nbytes, dtype=dtype, shape=shape)


def _add_segment(container: Container, path: Path, s: PackedSegment, entropy: bool, columns: int, progress: Callable[[int], None]) -> int:
    layout, count = layout_of(s.dtype, s.nbytes)
    values = map_range(path, s.offset, s.nbytes, torch.uint8).numpy().view(layout.dtype)
    return container.add(s.payload, told(chunks(values, layout), progress), count, layout, entropy=entropy, scaled=columns, weight=layout.width)


def add_rest(container: Container, files: Iterable[PackedFile], paths: dict[str, Path], progress: Callable[[int], None]) -> int:
    """Append the bytes of all files that lie outside their segments. Returns the bytes stored, 0 where there are none."""
    count = sum(end - begin for f in files for begin, end in f.gaps())
    if not count:
        return 0
    return container.add(REST, told(_gap_chunks(files, paths), progress), count, BYTES, weight=1)


def _gap_chunks(files: Iterable[PackedFile], paths: dict[str, Path]) -> Iterator[np.ndarray]:
    """The bytes outside segments, all files one after another, a chunk at a time."""
    chunk, filled = np.empty(_READ, np.uint8), 0
    for f in files:
        with paths[f.path].open("rb") as source:
            for begin, end in f.gaps():
                source.seek(begin)
                while begin < end:
                    n = source.readinto(memoryview(chunk)[filled : min(_READ, filled + end - begin)])
                    if not n:
                        raise OSError(f"{f.path} became shorter while it was read")
                    begin, filled = begin + n, filled + n
                    if filled == _READ:
                        yield chunk
                        chunk, filled = np.empty(_READ, np.uint8), 0
    if filled:
        yield chunk[:filled]


def told(parts: Iterable[np.ndarray], progress: Callable[[int], None]) -> Iterator[np.ndarray]:
    for part in parts:
        yield part
        progress(part.nbytes)


def sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
