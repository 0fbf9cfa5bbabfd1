"""Labels, one for each sample: the number of its class, or what a regression should give.

    .npy    [N] or [N, K]            .txt             a number on each line
    .npz    one array of that form   .jsonl, .json    a number, a list of numbers, or {"label": ...}
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from app.errors import InputRefused
from app.limits import shown
from worker.samples.npy import read_npy, read_npz
from worker.samples.text import read_lines, read_values

SUFFIXES = (".npy", ".npz", ".txt", ".jsonl", ".ndjson", ".json")


def read_labels(folder: Path) -> np.ndarray:
    """int64 or float32, [N] or [N, K].

    Raises:
        InputRefused: labels-mismatch where the file holds no labels; what its own reader raises.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    if len(files) != 1 or files[0].suffix not in SUFFIXES:
        raise _refused(f"labels are one file, {', '.join(SUFFIXES)}; there are {', '.join(shown(p.name) for p in files[:5]) or 'none'}")
    (path,) = files
    match path.suffix:
        case ".npy":
            array = read_npy(path)
        case ".npz":
            arrays = read_npz(path)
            if len(arrays) != 1:
                raise _refused(f"{shown(path.name)} holds the arrays {', '.join(map(shown, list(arrays)[:5]))}; one is needed")
            (array,) = arrays.values()
        case ".txt":
            array = _array([_number(line, i) for i, line in enumerate(read_lines(path))])
        case _:
            array = _array([v.get("label") if isinstance(v, dict) else v for v in read_values(path)])
    return _labels(array)


def _number(line: str, i: int) -> int | float:
    try:
        return int(line) if len(line) < 20 and line.strip().lstrip("+-").isdigit() else float(line[:40])
    except ValueError:
        raise _refused(f"label {i} is {shown(line)}, and no number; give the number of its class, as `id2label` of config.json counts them") from None


def _array(values: list) -> np.ndarray:
    rows = [v if isinstance(v, list) else [v] for v in values]
    for i, row in enumerate(rows):
        if len(row) != len(rows[0]) or not row or not all(type(n) in (int, float) and abs(n) < 1 << 53 for n in row):
            raise _refused(f"label {i} is {shown(str(values[i]))}; a number is needed, or for each sample as many as for the first")
    array = np.array(rows, dtype=np.int64 if all(type(n) is int for row in rows for n in row) else np.float32)
    return array if rows and isinstance(values[0], list) else array.reshape(-1)


def _labels(array: np.ndarray) -> np.ndarray:
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim not in (1, 2):
        raise _refused(f"labels of shape {list(array.shape)}; [N] or [N, K] is needed")
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise _refused(f"label {int(np.argwhere(~np.isfinite(array))[0][0])} is NaN or infinite in float32")
        return array
    return array.astype(np.int64)


def _refused(detail: str) -> InputRefused:
    return InputRefused("labels-mismatch", detail)
