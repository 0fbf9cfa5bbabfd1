"""Take out of a model what its owner may not want to publish: side files of training, and metadata that names people, paths or keys."""

from __future__ import annotations

import json
import shutil
import struct
from dataclasses import replace
from pathlib import Path

from app.formats import parse_safetensors_header
from app.sensitive import clean_metadata, strips
from worker.checkpoint import Checkpoint
from worker.formats import open_checkpoint
from worker.formats.pt2_writer import rewrite

_COPY = 8 << 20


def sanitized(checkpoint: Checkpoint, scratch: Path, *, strip: bool, whole_files: bool) -> Checkpoint:
    """`checkpoint` itself, or without what `worker.formats.sensitive` names.

    Args:
        strip: whether to strip at all; otherwise the findings are only reported.
        whole_files: the files themselves are kept (a lossless job), so a safetensors header with telling metadata, or a program, is written anew.
    """
    if not strip:
        return checkpoint
    kept = {path: p for path, p in checkpoint.files.items() if not strips(path) or path in checkpoint.weight_files}
    telling = [f for f, m in checkpoint.metadata.items() if clean_metadata(m) != m]
    if not (whole_files and (telling or checkpoint.program or len(kept) < len(checkpoint.files))):
        metadata = {f: clean_metadata(m) for f, m in checkpoint.metadata.items()}
        return replace(checkpoint, files=kept, metadata=metadata)
    clean = scratch / "sanitized"
    for path, source in kept.items():
        (clean / path).parent.mkdir(parents=True, exist_ok=True)
        if checkpoint.program:
            rewrite(checkpoint.program, clean / path)
        elif path in telling:
            _rewrite(source, clean / path, clean_metadata(checkpoint.metadata[path]))
        else:
            shutil.copyfile(source, clean / path)
    checkpoint.close()
    return open_checkpoint(clean, scratch)


def _rewrite(source: Path, target: Path, metadata: dict[str, str]) -> None:
    """The same safetensors file with other `__metadata__`."""
    size = source.stat().st_size
    with source.open("rb") as f:
        (length,) = struct.unpack("<Q", f.read(8))
        header = parse_safetensors_header(struct.pack("<Q", length) + f.read(length), size)
        entries = {n: {"dtype": d, "shape": list(s), "data_offsets": [a, b]} for n, (d, s, a, b) in header.entries.items()}
        text = json.dumps(({"__metadata__": metadata} if metadata else {}) | entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        with target.open("wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            shutil.copyfileobj(f, out, _COPY)
