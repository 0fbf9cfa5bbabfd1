"""Which file of an artifact holds the calibration data, and what is in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.errors import InputRefused
from app.limits import shown
from worker.samples.labels import read_labels
from worker.samples.npy import read_npy, read_npz
from worker.samples.text import MOST_SAMPLES, invalid, read_lines, read_values, words

SUFFIXES = (".txt", ".jsonl", ".ndjson", ".json", ".npy", ".npz")
FEWEST = 8
"""Samples; with fewer, estimates of gradients and of quality are chance."""


@dataclass(frozen=True)
class Samples:
    """As they were uploaded; one of the first three is not empty.

    Args:
        texts: N texts.
        tokens: N arrays of token ids, int64 [T].
        arrays: by input name, each [N, ...].
        labels: int64 or float32, [N] or [N, K]; None when there are none.
    """

    texts: list[str]
    tokens: list[np.ndarray]
    arrays: dict[str, np.ndarray]
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.texts) or len(self.tokens) or min((len(a) for a in self.arrays.values()), default=0)


def read(folder: Path, labels: Path | None = None) -> Samples:
    """The samples in an artifact's folder, with their labels out of another's.

    Raises:
        InputRefused: invalid-calibration, invalid-numpy, labels-mismatch, too-few-samples, limit-*.
    """
    samples = _samples(folder)
    if len(samples) < FEWEST:
        raise InputRefused("too-few-samples", f"there are {len(samples)} samples; at least {FEWEST} are needed, and a few hundred are good")
    if len(samples) > MOST_SAMPLES:
        raise InputRefused("limit-entries", f"there are {len(samples)} samples; at most {MOST_SAMPLES} are taken: a few hundred are enough")
    if labels is None:
        return samples
    found = read_labels(labels)
    if len(found) != len(samples):
        raise InputRefused("labels-mismatch", f"there are {len(found)} labels and {len(samples)} samples; one for each is needed, in the same order")
    return Samples(samples.texts, samples.tokens, samples.arrays, found)


def _samples(folder: Path) -> Samples:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    if len(files) != 1 or files[0].suffix not in SUFFIXES:
        raise invalid(f"calibration data are one file, {', '.join(SUFFIXES)}; there are {', '.join(shown(p.name) for p in files[:5]) or 'none'}")
    (path,) = files
    match path.suffix:
        case ".txt":
            return Samples(read_lines(path), [], {})
        case ".npz":
            return Samples([], [], _arrays(read_npz(path)))
        case ".npy":
            return Samples([], _rows(read_npy(path)), {})
        case _:
            return Samples(*words(read_values(path), path.name), {})


def _arrays(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    for name, array in arrays.items():
        if array.ndim == 0:
            raise invalid(f"array {shown(name)} is a single number; its first dimension must count the samples")
    if len(counts := {name: len(a) for name, a in arrays.items()}) and len(set(counts.values())) > 1:
        raise invalid(f"the arrays differ in their number of samples: {', '.join(f'{shown(n)} {c}' for n, c in list(counts.items())[:5])}")
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            where = next(i for i, sample in enumerate(array) if not np.isfinite(sample).all())
            raise invalid(f"sample {where} of array {shown(name)} holds NaN or infinite values")
    return arrays


def _rows(array: np.ndarray) -> list[np.ndarray]:
    """Token ids [N, T]."""
    if array.ndim != 2 or array.dtype.kind not in "iu" or not array.size:
        raise invalid(f"a .npy file holds token ids, integers [N, T]; this one has {array.dtype} {list(array.shape)}. Other inputs go into a .npz by their names")
    if int(array.min()) < 0 or int(array.max()) >= 1 << 31:
        raise invalid(f"token ids from {int(array.min())} to {int(array.max())}: none may be negative or above 2^31")
    return list(array.astype(np.int64))
