"""How good a result is: the reloaded model beside the original on data that nothing has learned from, in a jail of its own.

    inp/files/            the result, read-only
    inp/report.json       as the stages before wrote it
    spec["beside"]        `original`, `calibration` and, where there are labels, `labels`: folders, read-only
    out/report.json       the same with `quality`, and with all gates judged

Both models are in memory as float32. The data's `test` split is what counts: gradients, codebooks and recovery have seen the others.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from app import advice, gates
from app.errors import InputRefused
from app.recipe import parse_recipe
from worker.checkpoint import Checkpoint
from worker.lockstep import compare
from worker.devices import device_of
from worker.formats import open_checkpoint
from worker.progress import Emit, Progress
from worker.reloaded import Weights, reloaded
from worker.runnable import Runnable, open_runnable, replace
from worker.samples import SPLITS, Data, fit, read, shared, split

SPLIT = "test"
_SAMPLES, _OUTPUTS = 32, 1 << 26  # of a batch: samples, and values that a language model puts out


def run(inp: Path, out: Path, spec: dict, emit: Emit) -> None:
    """Add `quality` to the report of `inp` and judge the gates with it.

    Raises:
        GateFailed: once the report is written. InvalidJobSpec: a gate on a figure that models of this task do not have.
        InputRefused: the data cannot be read, or do not fit the model.
    """
    report = json.loads((inp / "report.json").read_text())
    scratch = out / "scratch"
    scratch.mkdir()
    try:
        report["quality"] = measure(inp / "files", scratch, spec, emit)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    report["gates"] = gates.judge(spec.get("gates") or {}, report["tensors"], report["totals"], report["quality"])
    if "search" not in report and (following := advice.after(report["gates"], parse_recipe(spec["recipe"]), spec["output"]["format"], True)):
        report["next"] = following
    (out / "report.json").write_text(json.dumps(report, allow_nan=False))
    gates.enforce(report["gates"])


def measure(files: Path, scratch: Path, spec: dict, emit: Emit) -> dict:
    """The report's `quality`: `{measured: true, task, samples, split, ...}` with the figures of its task, or `{measured: false, reason}`."""
    started, beside, device = time.monotonic(), {role: Path(path) for role, path in spec["beside"].items()}, device_of(spec)
    samples = read(beside["calibration"], beside.get("labels"))
    (scratch / "original").mkdir()
    original = open_checkpoint(beside["original"], scratch / "original")
    try:
        try:
            before = open_runnable(beside["original"], original, device)
        except InputRefused as e:
            if e.type != "not-runnable":
                raise
            return {"measured": False, "reason": e.detail}
        data = fit(samples, before)
        labelled = data.labels is not None and data.labels.ndim == 1 and data.labels.dtype.kind == "i"
        gates.check(spec.get("gates") or {}, before.task, labelled)
        size = batch_size(data, before, original)
        progress = Progress(emit, "measure", sum(s.nbytes for s in original.tensors.values()))
        with reloaded(spec["output"]["format"], files, scratch, lambda nbytes: progress.add(0)) as (folder, result):
            after = _second(before, result, folder, lambda: open_runnable(beside["original"], original, device))
            count = len(split(len(data), SPLIT))
            batches = (batch.to(device) for batch in data.batches(SPLIT, size))
            figures = compare(before, after, batches, labelled, lambda n: progress.add(progress.total * n // count))
    finally:
        original.close()
    sizes = {name: len(split(len(data), name)) for name in SPLITS}
    notes = [*data.notes, *(["there are so few samples that what is learned from is also what is judged by"] if shared(len(data)) else [])]
    told = {"measured": True, "task": before.task, "split": SPLIT, "samples": count} | figures
    return told | {"splits": sizes, "notes": notes, "seconds": round(time.monotonic() - started, 3)}


def batch_size(data: Data, runnable: Runnable, checkpoint: Checkpoint) -> int:
    """Samples of a batch, so that its outputs stay small: a language model has as many for each token as it has words."""
    if runnable.task not in ("causal-lm", "seq2seq"):
        return _SAMPLES
    words = (checkpoint.config or {}).get("vocab_size")
    words = words if isinstance(words, int) and words > 0 else 1 << 16
    longest = max(data.length(i) for i in split(len(data), SPLIT))
    return max(1, min(_SAMPLES, _OUTPUTS // (words * longest)))


def _second(before: Runnable, result: Checkpoint, folder: Path, again: Callable[[], Runnable]) -> Runnable:
    """The result as a runnable model: its weights in the original's code, or, where shapes have changed, as its own folder says.

    Args:
        again: opens the original once more.
    """
    weights = Weights(result)
    if not weights.fits({name: tuple(p.shape) for name, p in before.parameters.items()}):
        return open_runnable(folder, result, before.device)
    after = again()
    for name in after.parameters:  # one at a time
        replace(after, {name: weights[name]})
    return after


def child(inp: Path, out: Path, spec: dict, emit: Emit) -> None:
    """The child's entry: `run`, ended by one final event."""
    from worker.__main__ import run as ended

    ended(inp, out, spec, emit, work=run)
