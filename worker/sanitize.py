"""Takes out of a model what its owner may not want to publish. The weights stay as they are, bit for bit."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from worker.checkpoint import Checkpoint
from worker.formats import open_checkpoint
from worker.private.model import Private
from worker.private.weights import rewritten


def sanitized(checkpoint: Checkpoint, private: Private | None, scratch: Path, *, whole_files: bool) -> Checkpoint:
    """`checkpoint` itself, or without what was found in it.

    Args:
        private: what `worker.private.model.look` found; None where findings are only reported.
        whole_files: the files themselves are kept (a lossless job), so weight files that hold more than tensors are written anew.
    """
    if private is None or not (private.findings or private.left_out or private.rewrite):
        return checkpoint
    out = [path for path in private.left_out if path not in checkpoint.weight_files]
    kept = {path: p for path, p in checkpoint.files.items() if path not in out}
    if whole_files or private.paths:
        return _reopened(checkpoint, private, kept, scratch)
    clean = scratch / "sanitized"
    for number, path in enumerate(path for path in kept if path not in checkpoint.weight_files):
        if path in private.replaced or path in private.rewrite:
            target = clean / str(number) / Path(path).name
            _write(path, kept[path], target, private)
            kept[path] = target
    return replace(checkpoint, files=kept, metadata=private.metadata, config=private.config)


def _reopened(checkpoint: Checkpoint, private: Private, kept: dict[str, Path], scratch: Path) -> Checkpoint:
    """All files written anew, under paths that tell nothing."""
    clean = scratch / "sanitized"
    for path, source in kept.items():
        _write(path, source, clean / private.paths.get(path, path), private)
    checkpoint.close()
    opened = open_checkpoint(clean, scratch)
    opened.container, opened.notes = checkpoint.container, [*checkpoint.notes, *(n for n in opened.notes if n not in checkpoint.notes)]
    return opened


def _write(path: str, source: Path, target: Path, private: Private) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if path in private.rewrite:
        opened, kept = private.rewrite[path]
        rewritten(opened, source, target, kept)
    elif path in private.replaced:
        target.write_bytes(private.replaced[path])
    else:
        shutil.copyfile(source, target)
