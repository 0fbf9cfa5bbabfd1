"""Calibration data and labels: read with bounds, fitted to a model, split, and given out in batches.

    read      an artifact's files -> Samples                              reading.py, text.py, npy.py, labels.py
    fit       Samples -> Data that the model takes                        fit.py
    Data      `batches(split, size)`, the splits `fit`, `stop`, `test`    data.py, split.py
    perturbed a batch with tokens that others stand in for            perturbed.py
"""

from worker.samples.data import Batch, Data
from worker.samples.fit import fit
from worker.samples.perturbed import Vocabulary, perturbed
from worker.samples.reading import Samples, read
from worker.samples.split import SPLITS, shared, split

__all__ = ["SPLITS", "Batch", "Data", "Samples", "Vocabulary", "fit", "perturbed", "read", "shared", "split"]
