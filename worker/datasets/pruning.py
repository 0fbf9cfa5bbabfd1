"""Keeps the rows of a file that a model learns most from, each class by itself."""

from __future__ import annotations

import numpy as np
import torch

from app.errors import InputRefused
from app.limits import shown
from app.steps.dataset import PruneRows
from worker.datasets import features, rows
from worker.datasets.coreset import coreset, project
from worker.datasets.hardness import hardness
from worker.datasets.quotas import quotas
from worker.datasets.sources import Source
from worker.progress import Emit, Progress


def fitting(sources: list[Source], step: PruneRows, pointer: str) -> list[Source]:
    """The files that the step is about. Raises: InputRefused: not-selectable, where none has what it names."""
    named = [*(step.features or ()), *([step.label] if step.label else ())]
    found = [s for s in sources if rows.names(s) and set(named) <= set(rows.names(s))]
    if not found:
        some = ", ".join(shown(n) for s in sources for n in rows.names(s)[:8])
        raise InputRefused("not-selectable", f"no file has all of {', '.join(map(shown, named))}; there are {some}", pointer=f"{pointer}/{'label' if step.label else 'features'}")
    return found


def choose(source: Source, step: PruneRows, pointer: str, seed: int, emit: Emit) -> tuple[np.ndarray, int, dict]:
    """Positions of the rows to keep, how many there were, and for the report how many of each class were kept."""
    total = rows.count(source, [step.label] if step.label else step.features)
    if total < 2:
        raise InputRefused("not-selectable", f"{shown(source.name)} has {total} rows: there is nothing to choose from", pointer=pointer)
    y, names = features.labels(source, step.label, total, f"{pointer}/label") if step.label else (np.zeros(total, np.int64), ["all"])
    x = np.zeros((total, 0), np.float32) if step.saliency == "random" else features.matrix(source, step.features, step.label, total, f"{pointer}/features")
    progress = Progress(emit, "prune", total * step.seeds * (step.epochs + 1))
    kept = select(x, y, len(names), step, seed, progress.add)
    counts = {n: [int(k), int(c)] for n, k, c in zip(names, np.bincount(y[kept], minlength=len(names)), np.bincount(y, minlength=len(names)), strict=True)}
    return kept, total, {"saliency": step.saliency, "classes": counts}


def select(x: np.ndarray, y: np.ndarray, classes: int, step: PruneRows, seed: int, progress=lambda n: None) -> np.ndarray:
    """Positions in rising order, int64.

    Args:
        x: float32 [n, d].
        y: the class of each row, int64 [n].
    """
    scores = None
    if step.saliency in ("el2n", "grand"):
        scores = hardness(torch.from_numpy(x), torch.from_numpy(y), classes, step.saliency, step.seeds, step.epochs, seed, progress).numpy()
    return ranked(x, y, classes, scores, step, seed)


def ranked(x: np.ndarray, y: np.ndarray, classes: int, scores: np.ndarray | None, step: PruneRows, seed: int) -> np.ndarray:
    """`select`, where the hardness of each row, [n], is known (None where the saliency has none)."""
    members = [np.flatnonzero(y == c) for c in range(classes)]
    if scores is not None:
        members = [m[np.argsort(-scores[m], kind="stable")][round(step.drop_hardest * len(m)) :] for m in members]
    sizes = np.array([len(m) for m in members])
    wanted = quotas(sizes, min(max(1, round(step.keep * len(y))), int(sizes.sum())), step.balance)
    if scores is not None:
        chosen = [m[:k] for m, k in zip(members, wanted, strict=True)]
    elif step.saliency == "kmeans":
        near = project(x, seed)
        chosen = [m[coreset(near[m], k, seed)] if k else m[:0] for m, k in zip(members, wanted, strict=True)]
    else:
        r = np.random.default_rng(seed)
        chosen = [r.choice(m, k, replace=False) for m, k in zip(members, wanted, strict=True)]
    return np.sort(np.concatenate(chosen)).astype(np.int64)
