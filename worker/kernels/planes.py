"""Byte planes of numbers: what compresses (exponents) apart from what does not (signs and mantissas).

A float of w >= 2 bytes; its top 16 bits `s eeeeeeee mmmmmmm` (bf16 and fp32; fp16 and fp64 have other fields in the same 16 bits) become

    plane 0      e e e e e e e e      bits 14..7 of the top half: the exponent of bf16 and fp32
    plane 1      s m m m m m m m      bit 15 and bits 6..0
    plane 2..w-1                      the remaining bytes, the most significant first

Integers of w bytes become their w bytes, the most significant first. One-byte types are their own single plane.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from worker.kernels import native


def split(values: np.ndarray, floating: bool) -> list[np.ndarray]:
    """The planes of `values`.

    Args:
        values: unsigned integers [n] of 1, 2, 4 or 8 bytes: the bits of the numbers.
        floating: whether they are the bits of floats.

    Returns:
        as many uint8 arrays [n] as a value has bytes.
    """
    width = values.itemsize
    if width == 1:
        return [values]
    if floating and width <= 4 and native.available():
        return native.split(values)
    if not floating:
        return [(values >> 8 * i).astype(np.uint8) for i in reversed(range(width))]
    top = values if width == 2 else (values >> 8 * (width - 2)).astype(np.uint16)
    sign = top >> 8
    sign &= 0x80
    sign |= top & 0x7F
    return [(top >> 7).astype(np.uint8), sign.astype(np.uint8), *((values >> 8 * i).astype(np.uint8) for i in reversed(range(width - 2)))]


def merge(planes: Sequence[np.ndarray], floating: bool) -> np.ndarray:
    """The inverse of `split`: unsigned integers [n] of `len(planes)` bytes."""
    width = len(planes)
    if width == 1:
        return planes[0]
    if floating and width <= 4 and native.available():
        return native.merge(planes)
    if floating:
        top = planes[0].astype(np.uint16)
        top <<= 7
        top |= planes[1] & 0x7F
        top |= (planes[1].astype(np.uint16) & 0x80) << 8
    else:
        top = _join(planes[0], planes[1], np.uint16)
    if width == 2:
        return top
    if width == 4:
        return _join(top, _join(planes[2], planes[3], np.uint16), np.uint32)
    middle, low = _join(planes[2], planes[3], np.uint16), merge(planes[4:], False)
    return _join(_join(top, middle, np.uint32), low, np.uint64)


def _join(high: np.ndarray, low: np.ndarray, wide: type) -> np.ndarray:
    out = high.astype(wide)
    out <<= 8 * low.itemsize
    out |= low
    return out


def to_pairs(exponents: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """Bytes in a window of 15 values as nibbles, two in a byte.

    Args:
        exponents: uint8 [n].

    Returns:
        `top`, the window's largest value (the window that holds most of a sample); uint8 [ceil(n / 2)] with the nibble `top - e` or, outside the
        window, 15 (the low nibble first); and the bytes outside the window, in order.
    """
    held = np.cumsum(np.bincount(exponents[:: max(1, len(exponents) >> 14)], minlength=256))
    top = 14 + int(np.argmax(held[14:] - np.concatenate([[0], held[:-15]])))
    nibbles = np.minimum(np.uint8(top) - exponents, 15)
    escapes = exponents[nibbles == 15]
    if len(nibbles) % 2:
        nibbles = np.append(nibbles, np.uint8(0))
    two = nibbles.view("<u2")
    return top, (two | two >> 4).astype(np.uint8), escapes


def from_pairs(top: int, pairs: np.ndarray, escapes: np.ndarray, count: int, expected: int) -> np.ndarray:
    """The inverse of `to_pairs`: uint8 [count].

    Raises:
        ValueError: there are not `expected` escapes, or not as many nibbles of 15.
    """
    two = pairs.astype("<u2")
    two |= two << 4
    two &= 0x0F0F
    nibbles = two.view(np.uint8)[:count]
    out = np.uint8(top) - nibbles
    where = np.flatnonzero(nibbles == 15) if expected or len(escapes) else ()
    if not len(where) == len(escapes) == expected:
        raise ValueError(f"{len(escapes)} escapes where {expected} belong")
    if expected:
        out[where] = escapes
    return out
