"""Calibration data and labels: read with bounds, fitted to a model, split, and given out in batches.

    read      an artifact's files -> Samples                              reading.py, text.py, npy.py, labels.py
    fit       Samples -> Data that the model takes                        fit.py
    Data      `batches(split, size)`, the splits `fit`, `stop`, `test`    data.py, split.py
    perturbing  a batch with samples that are none of the data's: of texts, tokens that others stand in for; images, moved    perturbed.py, images.py
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.samples.data import Batch, Data
from worker.samples.fit import fit
from worker.samples.images import Images
from worker.samples.perturbed import Vocabulary, perturbed
from worker.samples.reading import Samples, read
from worker.samples.split import SPLITS, shared, split

if TYPE_CHECKING:
    from worker.runnable.runnable import Runnable

__all__ = ["SPLITS", "Batch", "Data", "Images", "Samples", "Vocabulary", "fit", "perturbed", "perturbing", "read", "shared", "split"]


def perturbing(runnable: Runnable, data: Data) -> Vocabulary | Images | None:
    """What makes other samples of the data's, called with a batch, rows of it and a generator; None where it is not known how."""
    return Vocabulary.of(runnable, data) or Images.of(runnable, data)
