"""A program of torch.export as a model that runs. Modes, dropout and batch sizes are those with which it was exported."""

from __future__ import annotations

import math

import torch

from app.errors import InputRefused, ModelpressError
from worker.checkpoint import Checkpoint
from worker.programs import Argument, Loaded, load
from worker.runnable.runnable import PROGRAM, Input, Runnable
from worker.samples.data import Batch

_MEMORY = ("memory", "bad_alloc")


def open_program(checkpoint: Checkpoint, device: torch.device) -> Runnable:
    """Its task is told by the labels that come with the data (`worker.samples.fit`): a classifier where they are classes, else a regressor.

    Raises:
        InputRefused: not-runnable.
    """
    loaded = load(checkpoint.program, device)
    values = loaded.output_shape[1:]
    classes = math.prod(values) if None not in values else None
    inputs = {a.name: _input(a) for a in loaded.arguments}
    return Runnable(loaded.module, loaded.parameters, PROGRAM, lambda batch: _forward(loaded, batch), inputs, classes=classes if len(values) <= 1 else None)


def _input(a: Argument) -> Input:
    return Input(torch.float32 if a.dtype.is_floating_point else a.dtype, a.shape[1:], a.below)


def _forward(loaded: Loaded, batch: Batch) -> torch.Tensor:
    """float32 [n, ...] of the first output with a row for each sample, or of the one that is called `logits`.

    Raises:
        InputRefused: calibration-mismatch, where the program does not run on these samples.
    """
    try:
        output = loaded(batch.inputs)
    except (ModelpressError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as e:  # the program's own words, on a stranger's numbers
        if any(word in str(e) for word in _MEMORY):
            raise
        which = f"samples {batch.positions[0]} to {batch.positions[-1]}"
        raise InputRefused("calibration-mismatch", f"the program does not run on {which} ({type(e).__name__}: {str(e).strip()[:300]})") from e
    return output.float() if output.ndim > 1 else output.float().unsqueeze(-1)
