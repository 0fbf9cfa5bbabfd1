"""What a job on a model of any format would give and cost: its reader opens it, `app.estimate` tells. Nothing is made of it.

Files that have to be parsed first (PyTorch checkpoints, archives, packed files) are estimated here, in a process that may import their readers.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from app.estimate import estimate
from app.job_spec import JobSpec
from app.outline import Outline, TensorSpec
from worker.checkpoint import Checkpoint, Segment
from worker.formats import open_checkpoint
from worker.progress import Emit


def run(inp: Path, out: Path, spec: dict, emit: Emit, rate: float | None = None) -> None:
    """Emit the answer of `POST /v1/estimates` as `estimate`. Archives are extracted into `out`.

    Args:
        rate: see `app.estimate.estimate`.

    Raises: what opening the model and `estimate` raise.
    """
    job = JobSpec.model_validate(spec)
    checkpoint = open_checkpoint(inp, out)

    def read(path: str, begin: int, end: int) -> bytes:
        with checkpoint.files[path].open("rb") as f:
            f.seek(begin)
            return f.read(end - begin)

    try:
        emit({"event": "estimated", "estimate": estimate(outlined(checkpoint, job.recipe.kind == "lossless"), job, read, rate)})
    finally:
        checkpoint.close()


def outlined(checkpoint: Checkpoint, whole_files: bool) -> Outline:
    """A checkpoint without its bytes. `whole_files`: by the segments that a lossless job codes; tensors without one of their own have no bytes."""
    tensors, offsets = checkpoint.tensors, checkpoint.offsets
    if whole_files:
        named = {_name(path, s): (path, s) for path, segments in checkpoint.segments.items() for s in segments}
        tensors = {name: replace(spec, nbytes=0) for name, spec in checkpoint.tensors.items()}
        tensors |= {name: TensorSpec(name, s.dtype, s.shape, s.nbytes, path) for name, (path, s) in named.items()}
        offsets = {name: s.offset for name, (_, s) in named.items()}
    return Outline(
        files={path: p.stat().st_size for path, p in checkpoint.files.items()},
        weight_files=checkpoint.weight_files,
        tensors=tensors,
        offsets=offsets,
        config=checkpoint.config,
        metadata=checkpoint.metadata,
        aliases=checkpoint.aliases,
    )


def _name(path: str, segment: Segment) -> str:
    """The name of a tensor in it, by which recipes choose; of a storage that no tensor uses its place."""
    return segment.tensors[0] if segment.tensors else f"{path}: {segment.name}"
