"""The payload that small tensors of a `packed` result will share, and what coding in contexts leaves there (worker.formats.packed_bundle)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

BUNDLE = "modelpress.bundle"
VALUES, SMALL = 1 << 19, 1 << 14
GAIN, DOUBT = 0.95, 0.25
"""Of the entropy of single codes: what coding in contexts usually leaves, and by how much more or less. Rows of pictures leave least."""
_HEAD = 12 + 6  # of a chunk, of codes in contexts


class Bundle:
    """Takes tensors while there is room for their values."""

    def __init__(self):
        self.left = VALUES

    def takes(self, count: int, beside: int, sparse: bool) -> bool:
        """Whether a tensor of `count` values goes in, with `beside` scales, zero points or levels."""
        if count + beside > self.left or (count > SMALL and not sparse):
            return False
        self.left -= count + beside
        return True


def codes_chunk(codes: Sequence[int], count: int, columns: int) -> float:
    """Bytes of `count` codes like these, coded in contexts.

    Args:
        columns: of the matrix, in whose order they are; counted where all codes are there.
    """
    seen = Counter(codes)
    (most, zeros), *others = seen.most_common()
    kept = len(codes) - zeros
    flags, numbers = _bits((zeros, kept)), _bits([n for _, n in others])
    if len(codes) == count:
        rows = count // columns
        held = Counter(i % columns for i, c in enumerate(codes) if c != most)
        flags = min(flags, sum(_bits((n, rows - n)) + math.log2(rows + 1) / 2 for n in held.values()))
    return _HEAD + GAIN * (flags + numbers) / len(codes) * count / 8 + len(seen)


def _bits(counts: Sequence[int]) -> float:
    """By the frequencies of what occurs so often."""
    total = sum(counts)
    return sum(n * math.log2(total / n) for n in counts if n > 0)
