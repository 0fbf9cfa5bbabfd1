"""Whole numbers in a stream of a range coder, each bit as likely as not: Exp-Golomb. As many zeros as the number, plus one, has bits after its first, then these bits."""

from __future__ import annotations

import constriction
import numpy as np

_BIT = constriction.stream.model.Uniform(2)


def write(coder, value: int) -> None:
    bits = bin(value + 1)[2:]
    coder.encode(np.array([0] * (len(bits) - 1) + [int(b) for b in bits], np.int32), _BIT)


def read(coder, longest: int) -> int:
    """Raises: ValueError: it has more than `longest` bits."""
    zeros = 0
    while not int(coder.decode(_BIT)):
        zeros += 1
        if zeros > longest:
            raise ValueError("a coefficient is too large")
    value = 1
    for _ in range(zeros):
        value = 2 * value + int(coder.decode(_BIT))
    return value - 1
