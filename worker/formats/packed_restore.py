"""Restores a packed file: the original files byte for byte, or a lossy result as safetensors files of the original names, shapes and dtypes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from app.limits import Limits, shown
from worker.checkpoint import DTYPES
from worker.formats.packed_entries import PackedFile, PackedTensor, layout_of
from worker.formats.packed_index import refuse
from worker.formats.packed_parts import tensor_bytes
from worker.formats.packed_reader import PackedReader
from worker.kernels.chunks import BYTES, CorruptPayload

Progress = Callable[[int], None]


def restore_packed(path: Path, out_dir: Path, progress: Progress, limits: Limits = Limits()) -> dict:
    """Write what `path` was made of into `out_dir`.

    Args:
        progress: told of bytes written, as they are.

    Returns:
        `kind` (files: byte for byte, digests checked; tensors: decoded), `files` {path: sha256}.

    Raises:
        InputRefused: invalid-packed. Files that were begun are then left incomplete.
    """
    with PackedReader(path, limits) as packed:
        digests = {rel: _write(out_dir / rel, parts, progress) for rel, parts in _files(packed)}
        _check(packed, digests)
        for number, shard in enumerate(packed.index.shards):
            digests[shard.path] = _write(out_dir / shard.path, _shard(packed, number), progress)
        if packed.index.shard_index is not None:
            digests[packed.index.shard_index] = _write(out_dir / packed.index.shard_index, iter([_weight_map(packed)]), progress)
        return {"kind": packed.index.kind, "files": digests}


def verify_packed(path: Path, progress: Progress, limits: Limits = Limits()) -> dict[str, str]:
    """Decode every file that is kept byte for byte and hold it against its digest, writing nothing. Returns {path: sha256}.

    Raises:
        InputRefused: invalid-packed.
    """
    with PackedReader(path, limits) as packed:
        digests = {rel: _write(None, parts, progress) for rel, parts in _files(packed)}
        _check(packed, digests)
        return digests


def _write(path: Path | None, parts: Iterator, progress: Progress) -> str:
    """SHA-256 of `parts`, written to `path` where there is one."""
    digest = hashlib.sha256()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("xb") if path is not None else None
    try:
        for part in parts:
            digest.update(part)
            if file is not None:
                file.write(part)
            progress(len(part))
    except CorruptPayload as e:
        raise refuse(str(e)) from None
    finally:
        if file is not None:
            file.close()
    return digest.hexdigest()


def _check(packed: PackedReader, digests: dict[str, str]) -> None:
    for f in packed.index.files:
        if digests[f.path] != f.sha256:
            raise refuse(f"{shown(f.path)} decodes to bytes with SHA-256 {digests[f.path]}, the index says {f.sha256}")


def _files(packed: PackedReader) -> Iterator[tuple[str, Iterator[memoryview]]]:
    """(path, its bytes in order) of the files kept byte for byte; each must be consumed before the next."""
    rest = _Rest(packed)
    for f in packed.index.files:
        yield f.path, _file(packed, f, rest)


def _file(packed: PackedReader, f: PackedFile, rest: _Rest) -> Iterator[memoryview]:
    gaps = f.gaps()
    for s in f.segments:
        yield from rest.take(*next(gaps))
        for values in packed.payload(s.payload, *layout_of(s.dtype, s.nbytes)).chunks(packed.pool):
            yield memoryview(values).cast("B")
    yield from rest.take(*next(gaps))


class _Rest:
    """The bytes between segments, in the order of the files, taken piece by piece."""

    def __init__(self, packed: PackedReader):
        name, size = packed.index.rest, packed.index.rest_bytes
        self.chunks = packed.payload(name, BYTES, size).chunks(packed.pool) if name is not None else iter(())
        self.left = memoryview(b"")

    def take(self, begin: int, end: int) -> Iterator[memoryview]:
        wanted = end - begin
        while wanted:
            if not self.left:
                self.left = memoryview(next(self.chunks))
            part, self.left = self.left[:wanted], self.left[wanted:]
            wanted -= len(part)
            yield part


def _members(packed: PackedReader, number: int) -> list[tuple[str, PackedTensor]]:
    """(name, tensor) of a shard, tied names with the tensor they stand for, wide dtypes first, so that every tensor is aligned."""
    own = {t.name: t for t in packed.index.tensors if t.shard == number}
    names = [*own.items(), *((a, own[t]) for a, t in packed.index.aliases.items() if t in own)]
    return sorted(names, key=lambda item: -_width(item[1].dtype))


def _width(dtype: str) -> int:
    return DTYPES[dtype].itemsize


def _shard(packed: PackedReader, number: int) -> Iterator[memoryview | bytes]:
    """The bytes of a safetensors file, one tensor at a time."""
    members = _members(packed, number)
    metadata = packed.index.shards[number].metadata
    header: dict = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, t in members:
        header[name] = {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": [at, at := at + t.nbytes]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for _, t in members:
        if t.quantized is None:
            for values in packed.chunks(t):
                yield memoryview(values).cast("B")
        else:
            yield memoryview(tensor_bytes(packed.read(t.name)))


def _weight_map(packed: PackedReader) -> bytes:
    """`{"metadata": {"total_size"}, "weight_map": {name: file}}`, as transformers reads it."""
    folder = packed.index.shard_index.rpartition("/")[0]
    weight_map, total = {}, 0
    for number, shard in enumerate(packed.index.shards):
        for name, t in _members(packed, number):
            weight_map[name] = shard.path.removeprefix(folder + "/") if folder else shard.path
            total += t.nbytes
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return (json.dumps(index, indent=2, ensure_ascii=False) + "\n").encode()
