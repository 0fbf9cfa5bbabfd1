"""The k lowest of any number of scores, exactly, without sorting them: a radix histogram over the bits of the scores.

Non-negative floats order as their bit patterns do. Each pass counts 16 bits of those that share the bits found so far, so float32 takes two passes over
the scores and float64 four; memory is one histogram. Ties are resolved by position: the caller takes the first `ties` of those equal to the threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch

_DIGIT = 16


def keys(scores: torch.Tensor) -> torch.Tensor:
    """int64 that order as the scores (float32 or float64, >= 0, no NaN) do."""
    return scores.contiguous().view(torch.int32 if scores.dtype == torch.float32 else torch.int64).long()


def threshold(scores: Callable[[], Iterable[torch.Tensor]], k: int, bits: int) -> tuple[int, int]:
    """The key of the k-th lowest score, and how many with that very key are among the k lowest.

    Args:
        scores: called once per pass; yields the scores in pieces.
        k: 1 <= k <= number of scores.
        bits: 32 or 64, of every score.
    """
    prefix, left = 0, k
    for shift in range(bits - _DIGIT, -1, -_DIGIT):
        counts = torch.zeros(1 << _DIGIT, dtype=torch.int64, device="cpu")
        for piece in scores():
            found = keys(piece.reshape(-1))
            if shift + _DIGIT < bits:
                found = found[found >> (shift + _DIGIT) == prefix]
            counts += torch.bincount((found >> shift) & ((1 << _DIGIT) - 1), minlength=1 << _DIGIT).cpu()
        reached = counts.cumsum(0)
        digit = int(torch.searchsorted(reached, left))
        left -= int(reached[digit - 1]) if digit else 0
        prefix = prefix << _DIGIT | digit
    return prefix, left


def lowest(scores: Iterable[torch.Tensor], key: int, ties: int) -> Iterator[torch.Tensor]:
    """For every piece of the scores which of them lie below `key`, or are among the first `ties` that equal it: bool, same shapes."""
    for piece in scores:
        found = keys(piece)
        out = found < key
        if ties:
            equal = (found == key).reshape(-1).nonzero()[:ties, 0]
            out.reshape(-1)[equal] = True
            ties -= len(equal)
        yield out


def lowest_per_row(scores: torch.Tensor, k: int) -> torch.Tensor:
    """The k lowest of each row of [R, C], ties by lowest index: bool [R, C]."""
    order = torch.sort(scores, dim=1, stable=True).indices[:, :k]
    return torch.zeros(scores.shape, dtype=torch.bool, device=scores.device).scatter_(1, order, True)
