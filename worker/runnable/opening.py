"""Which way a checkpoint is made to run."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from worker.checkpoint import Checkpoint
from worker.devices import CPU
from worker.runnable.runnable import Runnable, not_runnable


def open_runnable(folder: Path, checkpoint: Checkpoint, device: torch.device = CPU) -> Runnable:
    """The model of `checkpoint`, computed in float32 on `device`.

    Args:
        folder: what was uploaded; the files beside the weights are found by the checkpoint itself (an archive is extracted elsewhere).

    Raises:
        InputRefused: not-runnable, with the reason and what would work.
    """
    if checkpoint.program is not None:
        from worker.runnable.program import open_program

        return open_program(checkpoint, device)
    if checkpoint.config is None:
        raise not_runnable("it has no config.json beside its weights, so nothing says what network they are of", "a Hugging Face folder")
    if not importlib.util.find_spec("transformers"):
        raise not_runnable("transformers is not installed on this worker", "the extra `proof` of modelpress there")
    from worker.runnable.huggingface import open_huggingface

    return open_huggingface(checkpoint, device)
