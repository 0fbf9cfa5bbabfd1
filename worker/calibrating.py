"""The calibrate stage: run the model of the input on the calibration data and write what its outputs depend on.

    inp/                                     the model, read-only
    spec["beside"]["calibration"], ["labels"]   folders of those artifacts
    out/statistics.safetensors               see worker/statistics.py
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from app.layout import Entry
from worker import calibration, samples
from worker.checkpoint import Checkpoint
from worker.devices import device_of
from worker.formats import open_checkpoint
from worker.formats.safetensors_writer import Shard
from worker.progress import Emit, Progress
from worker.routing import few
from worker.runnable import Runnable, open_runnable
from worker.statistics import ABSOLUTE, INPUTS, SQUARE

NAME = "statistics.safetensors"


def run(inp: Path, out: Path, spec: dict, emit: Emit) -> None:
    """Raises: InputRefused: what the model, the data, or their meeting is refused for."""
    scratch = out / "scratch"
    scratch.mkdir(exist_ok=True)
    emit({"event": "progress", "stage": "calibrate", "fraction": 0.0, "bytes_done": 0, "bytes_total": 0})
    beside = spec["beside"]
    read = samples.read(Path(beside["calibration"]), Path(beside["labels"]) if beside.get("labels") else None)
    checkpoint = open_checkpoint(inp, scratch)
    try:
        device = device_of(spec)
        torch.use_deterministic_algorithms(device.type == "cuda", warn_only=True)  # on a CPU they are, and some checks of it cost time
        runnable = open_runnable(inp, checkpoint, device)
        data = samples.fit(read, runnable)
        count = len(calibration.chosen(data))
        each = sum(s.nbytes for s in checkpoint.tensors.values())  # a sample goes through the whole model
        progress = Progress(emit, "calibrate", count * each)
        sums = calibration.collect(runnable, data, spec.get("seed", 0), lambda n: progress.add(n * each))
        write(out / NAME, checkpoint, runnable, sums)
    finally:
        checkpoint.close()


def write(path: Path, checkpoint: Checkpoint, runnable: Runnable, sums: calibration.Sums) -> None:
    """Every matrix of the checkpoint is in it, under its own name; one that the network does not use has zeros, and so has an expert that too few tokens reach."""
    known = calibration.weights(runnable)
    names = [n for n, s in checkpoint.tensors.items() if n in known or (len(s.shape) >= 2 and checkpoint.read(n).is_floating_point() and s.nbytes)]
    sources: dict[str, torch.Tensor] = {}
    for name in names:
        shape, parameter = checkpoint.tensors[name].shape, known.get(name)
        for prefix, of in ((ABSOLUTE, sums.absolute), (SQUARE, sums.square)):
            unknown = few(sums.tokens.get(parameter), of[parameter]) if parameter is not None else None
            sources[prefix + name] = torch.zeros(()).expand(shape) if parameter is None else of[parameter].masked_fill(unknown, 0) if bool(unknown.any()) else of[parameter]
        if parameter in sums.inputs:
            sources[INPUTS + name] = sums.inputs[parameter].float()
    shard = Shard(path, [Entry(name, "F32", tuple(t.shape)) for name, t in sources.items()])
    for tensor in sources.values():
        shard.write(tensor.cpu())
    shard.close()


def child(inp: Path, out: Path, spec: dict, emit: Callable[[dict], None]) -> None:
    """The child's entry: `run`, ended by one final event."""
    from worker.__main__ import run as ended

    ended(inp, out, spec, emit, work=run)
