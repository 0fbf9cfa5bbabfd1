"""Samples as a model takes them; what does not fit is refused, with what would."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from app.errors import InputRefused, ModelpressError
from app.limits import shown
from worker.samples.data import Data
from worker.samples.reading import FEWEST, Samples

if TYPE_CHECKING:
    from worker.runnable.runnable import Input, Runnable

_MEMORY = ("memory", "bad_alloc")
_BESIDE = frozenset(("attention_mask", "token_type_ids", "position_ids"))  # one value for each token


def fit(samples: Samples, runnable: Runnable) -> Data:
    """The samples, tokenized, cut to what the model takes and checked; the longest is run once.

    Raises:
        InputRefused: calibration-mismatch, labels-mismatch, too-few-samples; non-finite, where the model's output is.
    """
    if runnable.task == "program":
        runnable.task = "classifier" if _classes(samples.labels) and (runnable.classes or 0) > 1 else "regressor"
    labels = None if samples.labels is None else _labels(samples.labels, runnable)
    data = _fed(samples, labels, runnable) if samples.arrays else _tokens(samples, labels, runnable)
    _tried(data, runnable)
    return data


def _classes(labels: np.ndarray | None) -> bool:
    """Whether labels are numbers of classes."""
    return labels is not None and labels.ndim == 1 and labels.dtype.kind == "i"


def _tokens(samples: Samples, labels: np.ndarray | None, runnable: Runnable) -> Data:
    if "input_ids" not in runnable.inputs:
        raise _mismatch(f"the model takes no text, it takes {_names(runnable)}; upload an .npz with arrays of these names")
    tokens, longest = samples.tokens, runnable.longest or 1 << 31
    if samples.texts:
        if runnable.tokenizer is None:
            raise _mismatch("there is no tokenizer.json beside the model; add it, or upload token ids ({\"input_ids\": [..]} on each line of a .jsonl)")
        tokens = [np.array(ids, dtype=np.int64) for text in samples.texts for ids in runnable.tokenizer([text])]
    below = runnable.inputs["input_ids"].below
    for i, ids in enumerate(tokens):
        if len(ids) and below is not None and not 0 <= int(ids.min()) <= int(ids.max()) < below:
            raise _mismatch(f"sample {i} holds token {int(ids.max())}, and the model's vocabulary ends at {below - 1}; use the model's own tokenizer")
    notes = []
    if cut := sum(len(ids) > longest for ids in tokens):
        notes.append(f"{cut} samples are cut to {longest} tokens")
    tokens = [ids[:longest] for ids in tokens]
    fewest = 2 if runnable.task == "causal-lm" else 1
    short = [i for i, ids in enumerate(tokens) if len(ids) < fewest]
    if short and labels is not None:
        raise _mismatch(f"sample {short[0]} has {len(tokens[short[0]])} tokens; at least {fewest} are needed, so that its label says something")
    if short:
        tokens = [ids for ids in tokens if len(ids) >= fewest]
        notes.append(f"{len(short)} samples of fewer than {fewest} tokens are passed over")
    if len(tokens) < FEWEST:
        raise InputRefused("too-few-samples", f"{len(tokens)} of {len(tokens) + len(short)} samples have the {fewest} tokens that are needed; at least {FEWEST} samples are")
    return Data(tokens=tokens, labels=labels, pad=runnable.pad, notes=tuple(notes))


def _fed(samples: Samples, labels: np.ndarray | None, runnable: Runnable) -> Data:
    if unknown := samples.arrays.keys() - runnable.inputs.keys():
        raise _mismatch(f"the model has no input {', '.join(map(shown, sorted(unknown)[:3]))}; it takes {_names(runnable)}")
    if missing := [n for n, i in runnable.inputs.items() if i.required and n not in samples.arrays]:
        raise _mismatch(f"there is no array {', '.join(map(shown, missing[:3]))}; the model takes {_names(runnable)}")
    ids = samples.arrays.get("input_ids")
    if ids is not None and ids.ndim == 2 and runnable.longest and ids.shape[1] > runnable.longest:
        raise _mismatch(f"array 'input_ids' has samples of {ids.shape[1]} tokens; at most {runnable.longest} are taken: cut them, with their mask")
    for name in sorted(_BESIDE.intersection(samples.arrays)) if ids is not None else ():
        if (shape := samples.arrays[name].shape) != ids.shape and runnable.inputs[name].shape == (None,):
            raise _mismatch(f"array {shown(name)} has shape {list(shape)} and 'input_ids' {list(ids.shape)}; one value for each token is needed")
    return Data(arrays={name: _array(name, array, runnable.inputs[name]) for name, array in samples.arrays.items()}, labels=labels)


def _array(name: str, array: np.ndarray, wanted: Input) -> np.ndarray:
    floating = wanted.dtype.is_floating_point
    if (array.dtype.kind == "f") != floating:
        raise _mismatch(f"array {shown(name)} holds {array.dtype}, the model takes {'floats, scaled as in training' if floating else 'integers'} there")
    shape = list(array.shape[1:])
    if wanted.shape is not None and (len(shape) != len(wanted.shape) or any(w not in (None, n) for n, w in zip(shape, wanted.shape, strict=True))):
        told = ", ".join("any" if n is None else str(n) for n in wanted.shape)
        raise _mismatch(f"array {shown(name)} has samples of shape {shape}, the model takes [{told}]")
    if wanted.below is not None and array.size and not 0 <= int(array.min()) <= int(array.max()) < wanted.below:
        raise _mismatch(f"array {shown(name)} holds values from {int(array.min())} to {int(array.max())}; the model takes 0 to {wanted.below - 1}")
    return array.astype(str(wanted.dtype).removeprefix("torch."))


def _labels(labels: np.ndarray, runnable: Runnable) -> np.ndarray:
    task, classes = runnable.task, runnable.classes
    if task == "regressor":
        if labels.size // len(labels) != (classes or labels.size // len(labels)):
            raise _unlike(f"labels have shape {list(labels.shape)}, the model gives {classes} values")
        return labels.astype(np.float32).reshape(len(labels), -1)
    if task != "classifier":
        raise _unlike(f"the model is {'an' if task[0] in 'aeiou' else 'a'} {task} and has no classes; leave the labels out: {'its text is its own label' if task == 'causal-lm' else 'its own outputs are compared'}")
    if labels.ndim != 1 or labels.dtype.kind != "i":
        raise _unlike(f"labels are {labels.dtype} {list(labels.shape)}; the number of its class is needed for each sample")
    if classes is not None and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise _unlike(f"labels go from {int(labels.min())} to {int(labels.max())}; the model has the classes 0 to {classes - 1}")
    return labels


def _tried(data: Data, runnable: Runnable) -> None:
    """Run the longest sample: what a model says of inputs of a wrong shape is said at once."""
    longest = max(range(len(data)), key=data.length)
    try:
        with torch.no_grad():
            output = runnable.forward(data.batch([longest]).to(runnable.device))
    except (ModelpressError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as e:
        if any(word in str(e) for word in _MEMORY):
            raise
        raise _mismatch(f"the model does not run on sample {longest} ({type(e).__name__}: {str(e)[:300]}); it takes {_names(runnable)}") from e
    if not bool(torch.isfinite(output).all()):
        raise InputRefused("non-finite", f"the model's own output for sample {longest} holds NaN or infinite values, so nothing can be measured by it")


def _names(runnable: Runnable) -> str:
    return ", ".join(f"{n} {'float' if i.dtype.is_floating_point else 'int'}" + ("" if i.required else " (optional)") for n, i in runnable.inputs.items())


def _mismatch(detail: str) -> InputRefused:
    return InputRefused("calibration-mismatch", detail)


def _unlike(detail: str) -> InputRefused:
    return InputRefused("labels-mismatch", detail)
