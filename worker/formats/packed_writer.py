"""Writes the tensors of a lossy result: codes with their scales, pruned tensors as mask and values, others as they are or entropy-coded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from app.layout import INDEXES, index_path, shard_path
from worker.checkpoint import NAMES, Checkpoint
from worker.encoded import Codebook, Encoded, Quantized
from worker.formats.packed_container import REST, Container
from worker.formats.packed_files import add_rest, sha256
from worker.formats.packed_index import Index, PackedCodebook, PackedFile, PackedQuantized, PackedTensor, Shard, layout_of
from worker.kernels.chunks import Layout
from worker.kernels.payload import chunks


class PackedWriter:
    """Streams encoded tensors into the packed file `path`, then the files around them.

    Numbers are entropy-coded, and so are the codes of codebooks. Other codes take `num_bits` each, so that their size is known beforehand, unless a
    lossless step targets them or they are pruned.
    """

    def __init__(self, path: Path, checkpoint: Checkpoint):
        self.checkpoint = checkpoint
        self.container = Container(path, checkpoint.tensors)
        self.tensors: list[PackedTensor] = []
        self.steps: list[dict] = []
        self.copies = {name: 1 for name in checkpoint.tensors}
        for target in checkpoint.aliases.values():
            self.copies[target] += 1

    def write(self, encoded: Encoded) -> int:
        """Append one tensor. Returns the bytes stored for it: 0 when it is dropped."""
        if encoded.action == "dropped":
            return 0
        spec = encoded.spec
        payload = self.container.free_name(spec.name)
        entropy = encoded.quantized is None or encoded.lossless or encoded.mask is not None
        restored = self.copies[spec.name] * spec.nbytes
        quantized = None
        if isinstance(encoded.quantized, Codebook):
            quantized = self._codebook(payload, encoded.quantized, restored)
        elif encoded.quantized is not None:
            quantized = self._quantized(payload, encoded.quantized, entropy, restored)
        else:
            self._add(payload, encoded.dense, entropy, restored)
        shard = self.checkpoint.weight_files.index(spec.file)
        self.tensors.append(PackedTensor(name=spec.name, payload=payload, shard=shard, dtype=spec.dtype, shape=spec.shape, quantized=quantized))
        return self.container.sizes[payload]

    def _add(self, payload: str, values: torch.Tensor, entropy: bool, restored: int = 0) -> int:
        bits = tensor_bytes(values)
        layout, count = layout_of(NAMES[values.dtype], len(bits))
        weight = restored / max(1, count)
        return self.container.add(payload, chunks(bits.view(layout.dtype), layout), count, layout, entropy=entropy, weight=weight)

    def _quantized(self, payload: str, q: Quantized, entropy: bool, restored: int) -> PackedQuantized:
        rows, columns = q.codes.shape
        if q.params.type == "float":
            sections = [self._add(payload, q.codes, entropy, restored)]
        else:
            layout = Layout("codes", q.params.num_bits)
            weight = restored / max(1, q.codes.numel())
            parts = (biased(part, q.params.num_bits) for part in chunks(tensor_bytes(q.codes), layout))
            sections = [self.container.add(payload, parts, q.codes.numel(), layout, entropy=entropy, weight=weight)]
        sections += [self._add(payload, t, entropy) for t in (q.scale, q.zero_point) if t is not None]
        return PackedQuantized(
            type=q.params.type, num_bits=q.params.num_bits, rows=rows, columns=columns, transposed=q.transposed, group_size=q.group_size,
            scale_dtype=NAMES[q.scale.dtype], scale_shape=tuple(q.scale.shape), sections=tuple(sections), step=self._step(q),
        )  # fmt: skip

    def _codebook(self, payload: str, q: Codebook, restored: int) -> PackedCodebook:
        rows, columns = q.codes.shape
        layout = Layout("codes", q.num_bits)
        codes = self.container.add(payload, chunks(tensor_bytes(q.codes), layout), rows * columns, layout, weight=restored / max(1, rows * columns))
        levels = self._add(payload, q.levels, True, q.levels.nbytes)
        return PackedCodebook(
            type="codebook", num_bits=q.num_bits, rows=rows, columns=columns, transposed=q.transposed, group_size=q.group_size,
            levels_dtype=NAMES[q.levels.dtype], levels_shape=tuple(q.levels.shape), sections=(codes, levels), step=self._step(q),
        )  # fmt: skip

    def _step(self, q: Quantized | Codebook) -> int:
        """The number of the step that made the codes, among those of this file."""
        if (step := q.params.model_dump(mode="json")) not in self.steps:
            self.steps.append(step)
        return self.steps.index(step)

    def finish(self) -> None:
        """Append the files that are kept beside the weights, and the index; close the file."""
        c = self.checkpoint
        written = {t.name for t in self.tensors}
        indexes = [f for f in c.files if f.endswith(INDEXES)]
        paths = {rel: p for rel, p in c.files.items() if rel not in c.weight_files and rel not in indexes}
        files = tuple(PackedFile(path=rel, size=p.stat().st_size, sha256=sha256(p)) for rel, p in paths.items())
        shards, taken = [], set(paths)
        for rel in c.weight_files:
            target = shard_path(rel)
            if target in taken:
                target = rel + ".safetensors"
            taken.add(target)
            shards.append(Shard(path=target, metadata=c.metadata.get(rel, {})))
        rest = add_rest(self.container, files, paths, lambda nbytes: None)
        self.container.finish(
            Index(
                kind="tensors", files=files, rest=REST if rest else None, shards=tuple(shards), tensors=tuple(self.tensors), steps=tuple(self.steps),
                shard_index=index_path(indexes[0]) if indexes else None, aliases={a: t for a, t in c.aliases.items() if t in written},
            )  # fmt: skip
        )
        self.close()

    def close(self) -> None:
        self.container.__exit__()


def tensor_bytes(values: torch.Tensor) -> np.ndarray:
    """The bytes of a tensor, row-major: uint8 [nbytes]; a view where it is contiguous."""
    return values.contiguous().reshape(-1).view(torch.uint8).numpy()


def biased(codes: np.ndarray, num_bits: int) -> np.ndarray:
    """int8 codes, as bytes, to unsigned ones: code + 2^(num_bits - 1). Its own inverse on the other side is the same subtraction."""
    return codes + np.uint8(1 << (num_bits - 1))
