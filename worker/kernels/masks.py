"""Pruned tensors: which values are not zero, apart from those values. Both zeros are zeros: `w * mask` leaves -0.0 where w was negative, so the signs
of the zeros are one more row of bits, most often empty.

    mask   bit i % 8 of byte i // 8 is set where value i is kept; unused bits of the last byte are 0
    gaps   for each kept value the number of zeros before it, as a byte; 255 means 255 zeros and no value yet. Half the size at 95 % zeros, since the
           lengths of runs suit a Huffman code better than eight bits of a mask do
"""

from __future__ import annotations

import numpy as np

from worker.kernels import native


def apart(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mask of floats, given by their bits; those that are kept; and which of the zeros are negative, bool [zeros]."""
    if native.available():
        mask, found, negative = native.compact(values)
        return mask, found, values[~kept(mask, len(values))] != 0 if negative else np.zeros(len(values) - len(found), bool)
    keep = nonzero(values)
    return to_mask(keep), values[keep], values[~keep] != 0


def together(mask: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """Floats as `apart` had them, with positive zeros.

    Raises:
        ValueError: the mask has other than as many ones, or one behind the end.
    """
    if native.available():
        return native.spread(mask, values, count)
    where = from_mask(mask, count)
    if len(where) != len(values):
        raise ValueError(f"a mask of {len(where)} ones for {len(values)} values")
    out = np.zeros(count, values.dtype)
    out[where] = values
    return out


def kept(mask: np.ndarray, count: int) -> np.ndarray:
    """bool [count] of a mask."""
    return np.unpackbits(mask, count=count, bitorder="little").view(bool)


def nonzero(values: np.ndarray) -> np.ndarray:
    """bool [n]: whether a float, given by its bits, has any bit set beside its sign."""
    return values << 1 != 0


def to_mask(keep: np.ndarray) -> np.ndarray:
    """bool [n] -> uint8 [ceil(n / 8)]."""
    return np.packbits(keep, bitorder="little")


def from_mask(mask: np.ndarray, count: int) -> np.ndarray:
    """The indices (ascending) of the kept among `count` values.

    Raises:
        ValueError: a bit behind the end is set.
    """
    where = np.flatnonzero(np.unpackbits(mask, bitorder="little").view(bool))
    if len(where) and where[-1] >= count:
        raise ValueError("the mask has ones behind its end")
    return where


def to_gaps(keep: np.ndarray) -> np.ndarray:
    """bool [n] -> uint8 [kept + skips]."""
    zeros = np.diff(np.flatnonzero(keep), prepend=-1) - 1
    skips, last = np.divmod(zeros, 255)
    out = np.full(len(zeros) + int(skips.sum()), 255, np.uint8)
    out[np.cumsum(skips + 1) - 1] = last
    return out


def from_gaps(gaps: np.ndarray, count: int) -> np.ndarray:
    """The indices (ascending) of the kept among `count` values.

    Raises:
        ValueError: they go behind the end.
    """
    value = gaps != 255
    where = (np.cumsum(gaps, dtype=np.int64) + np.cumsum(value) - 1)[value]
    if len(where) and where[-1] >= count:
        raise ValueError("the gaps go behind the end of the values")
    return where
