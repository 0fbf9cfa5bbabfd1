"""pcodec (github.com/pcodec/pcodec) on numbers of 16 to 64 bits: exact to the bit, and never more read back than was asked for."""

from __future__ import annotations

import numpy as np
from pcodec import ChunkConfig, standalone

from worker.datasets.refusals import damaged

DTYPES = frozenset(np.dtype(n) for n in ("i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"))
_LEVEL = 8


def compress(values: np.ndarray) -> bytes:
    """Args: values: [n], contiguous, of one of DTYPES."""
    return standalone.simple_compress(values, ChunkConfig(compression_level=_LEVEL))


def decompress(data: bytes, dtype: np.dtype, count: int) -> np.ndarray:
    """[count] of `dtype`.

    Raises:
        InputRefused: invalid-dataset, where `data` hold something else.
    """
    out = np.empty(count, dtype)
    try:
        done = standalone.simple_decompress_into(data, out)
    except (RuntimeError, TypeError, ValueError) as e:
        raise damaged(f"numbers do not decode: {str(e)[:100]}") from None
    except BaseException as e:  # what Rust's panics become is no Exception
        if type(e).__name__ != "PanicException":
            raise
        raise damaged("numbers do not decode") from None
    if done.n_processed != count or (count and not done.finished):
        raise damaged(f"{done.n_processed} numbers where {count} must be")
    return out
