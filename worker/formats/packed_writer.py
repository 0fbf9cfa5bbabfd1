"""Writes the tensors of a lossy result: codes with their scales, pruned tensors as mask and values, others as they are or entropy-coded."""

from __future__ import annotations

from pathlib import Path

from app.layout import INDEXES, index_path, shard_path
from worker.checkpoint import NAMES, Checkpoint
from worker.encoded import Codebook, Encoded, Grid, Quantized
from worker.formats.packed_bundle import Bundle
from worker.formats.packed_container import REST, Container
from worker.formats.packed_entries import Index, PackedCodebook, PackedFile, PackedGrid, PackedQuantized, PackedTensor, Shard
from worker.formats.packed_files import add_rest, sha256
from worker.formats.packed_parts import parts_of


class PackedWriter:
    """Streams encoded tensors into the packed file `path`, then the files around them.

    Numbers are entropy-coded, and so are the codes of codebooks. Other codes take `num_bits` each, so that their size is known beforehand, unless a
    lossless step targets them or they are pruned. Small tensors share one payload.
    """

    def __init__(self, path: Path, checkpoint: Checkpoint):
        self.checkpoint = checkpoint
        self.container = Container(path, checkpoint.tensors)
        self.bundle = Bundle(self.container)
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
        parts = parts_of(encoded, self.copies[spec.name] * spec.nbytes)
        if self.bundle.takes(parts):
            payload, sizes = None, tuple(map(self.bundle.add, parts))
        else:
            payload = self.container.free_name(spec.name)
            sizes = tuple(self.container.add(payload, p.chunks(), len(p.values), p.layout, entropy=p.entropy, scaled=p.columns if p.scaled else 0, weight=p.weight) for p in parts)
        size = sizes[0] if payload is None and encoded.quantized is None else None
        shard = self.checkpoint.weight_files.index(spec.file)
        quantized = None if encoded.quantized is None else self._described(encoded.quantized, sizes)
        self.tensors.append(PackedTensor(name=spec.name, payload=payload, size=size, shard=shard, dtype=spec.dtype, shape=spec.shape, quantized=quantized))
        return sum(sizes)

    def _described(self, q: Quantized | Grid | Codebook, sections: tuple[int, ...]) -> PackedQuantized | PackedGrid | PackedCodebook:
        rows, columns = q.codes.shape
        common = {"rows": rows, "columns": columns, "transposed": q.transposed, "experts": q.experts, "group_size": q.group_size, "sections": sections, "step": self._step(q)}
        if isinstance(q, Codebook):
            return PackedCodebook(type="codebook", num_bits=q.num_bits, levels_dtype=NAMES[q.levels.dtype], levels_shape=tuple(q.levels.shape), **common)
        if isinstance(q, Grid):
            return PackedGrid(type="grid", num_bits=q.params.num_bits, levels=q.levels is not None, offset=q.offset is not None, zero=q.zero, inputs=q.inputs is not None, **_scales(q), **common)
        scales = {"scale_dtype": NAMES[q.scale.dtype], "scale_shape": tuple(q.scale.shape)}
        return PackedQuantized(type=q.params.type, num_bits=q.params.num_bits, **scales, **common)

    def _step(self, q: Quantized | Grid | Codebook) -> int:
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
        bundle = self.bundle.finish()
        rest = add_rest(self.container, files, paths, lambda nbytes: None)
        self.container.finish(
            Index(
                kind="tensors", files=files, rest=REST if rest else None, shards=tuple(shards), tensors=tuple(self.tensors), steps=tuple(self.steps),
                shard_index=index_path(indexes[0]) if indexes else None, bundle=bundle, aliases={a: t for a, t in c.aliases.items() if t in written},
            )  # fmt: skip
        )
        self.close()

    def close(self) -> None:
        self.container.__exit__()


def _scales(q: Grid) -> dict:
    floats = q.scale.values if q.scale.above is None else q.scale.above
    found = {"scale_dtype": NAMES[floats.dtype], "scale_shape": tuple(q.scale.values.shape)}
    if q.scale.above is None:
        return found
    return found | {"scale_bits": q.scale.bits, "shared_by": q.scale.each * q.group_size, "exponent": q.scale.exponent}
