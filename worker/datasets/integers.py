"""Whole numbers as few bytes: by pcodec, or as differences in byte planes by Zstandard, whichever is smaller.

    coding: u8 (0 pcodec, 1 differences) | dtype: u8 (a position in DTYPES, the narrowest that holds them) | data
"""

from __future__ import annotations

import numpy as np

from worker.datasets import array_codecs, pco
from worker.datasets.refusals import damaged

DTYPES = tuple(np.dtype(n) for n in ("i2", "i4", "i8"))
_LEVEL = 9


def encode(values: np.ndarray) -> bytes:
    """Args: values: int64 [n]."""
    low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    which = next(i for i, d in enumerate(DTYPES) if np.iinfo(d).min <= low and high <= np.iinfo(d).max)
    narrow = np.ascontiguousarray(values.astype(DTYPES[which]))
    found = [pco.compress(narrow), array_codecs.encode("delta", narrow, _LEVEL)]
    coding = int(len(found[1]) < len(found[0]))
    return bytes([coding, which]) + found[coding]


def decode(data: bytes, count: int) -> np.ndarray:
    """int64 [count]. Raises: InputRefused: invalid-dataset."""
    if len(data) < 2 or data[0] > 1 or data[1] >= len(DTYPES):
        raise damaged("numbers of no known coding")
    dtype = DTYPES[data[1]]
    if data[0] == 0:
        return pco.decompress(data[2:], dtype, count).astype(np.int64)
    return array_codecs.decode("delta", data[2:], dtype, (count,)).astype(np.int64)
