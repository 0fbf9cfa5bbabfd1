"""Values that a grid does not hold well enough, beside the codes: where they are, and their bits.

    part 1: positions, as differences (`worker.datasets.integers`)    part 2: the values; Zstandard of their byte planes
"""

from __future__ import annotations

import numpy as np

from worker.datasets import array_codecs, integers, parts
from worker.datasets.refusals import damaged

_LEVEL = 9


def pack(values: np.ndarray, missed: np.ndarray) -> bytes:
    """Args: values: [n]. missed: bool [n]."""
    places = np.flatnonzero(missed)
    if not len(places):
        return b""
    head = len(places).to_bytes(8, "little")
    return parts.join([head, integers.encode(np.diff(places, prepend=0)), array_codecs.encode("planes", values[places], _LEVEL)])


def put(data: bytes, values: np.ndarray) -> None:
    """Write them into `values` [n]. Raises: InputRefused: invalid-dataset."""
    if not data:
        return
    head, places, found = parts.split(data, 3)
    count = int.from_bytes(head, "little")
    if len(head) != 8 or not 0 < count <= len(values):
        raise damaged("more exceptions than values")
    at = np.cumsum(integers.decode(places, count))
    if at[0] < 0 or at[-1] >= len(values) or (np.diff(at) <= 0).any():
        raise damaged("exceptions are out of order")
    values[at] = array_codecs.decode("planes", found, values.dtype, (count,))
