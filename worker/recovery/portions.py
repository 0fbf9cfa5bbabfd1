"""Batches in parts, of which each has few enough logits: a language model puts out as many numbers for each token as it has words, and training holds
several copies of them."""

from __future__ import annotations

from worker.runnable.runnable import Runnable
from worker.samples.data import Batch

LOGITS = 1 << 24
"""Numbers of the logits of a part, 64 MiB; a single sample may have more."""


def portions(runnable: Runnable, batch: Batch) -> list[tuple[float, Batch]]:
    """Parts in order, each with its share of the positions that count, so that the sum of shares times means over positions is the mean over all of them.
    The batch itself, of share 1, where that is small enough."""
    words = getattr(runnable.inputs.get("input_ids"), "below", None)
    if runnable.task not in ("causal-lm", "seq2seq") or not words or batch.mask is None:
        return [(1.0, batch)]
    rows = max(1, LOGITS // (words * batch.mask.shape[1]))
    if rows >= len(batch):
        return [(1.0, batch)]
    parts = [batch.rows(start, start + rows) for start in range(0, len(batch), rows)]
    counted = [int(part.mask.sum()) for part in parts]
    return [(n / max(1, sum(counted)), part) for n, part in zip(counted, parts, strict=True)]
