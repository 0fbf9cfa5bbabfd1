"""How many bytes an array takes once it is entropy-coded: by coding it."""

from __future__ import annotations

import numpy as np

from worker.kernels.chunks import Layout, encode_chunk
from worker.kernels.payload import chunks

_HEAD, _OFFSET = 16, 8  # of a payload, see payload.py


def coded_bytes(values: np.ndarray, layout: Layout) -> int:
    """Args: values: `layout.dtype` [n]."""
    parts = [len(encode_chunk(part, layout)) for part in chunks(values, layout)]
    return _HEAD + _OFFSET * (len(parts) + 1) + sum(parts)
