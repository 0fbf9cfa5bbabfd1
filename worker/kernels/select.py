"""The k lowest of any number of scores, exactly, without sorting them: a radix histogram over the bits of their magnitudes.

A score is the magnitude of what is given, so that weights need no copy to be ranked. Magnitudes order as their bit patterns do. Each pass counts 16 bits of those that
share the bits found so far, so bfloat16 takes one pass over the scores, float32 two and float64 four; memory is one histogram. Ties are resolved by position: the
caller takes the first `ties` of those equal to the threshold. Compiled where that was built (`cpp/select.cpp`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch

from worker.kernels import native

_DIGIT = 16


def keys(scores: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """int64 that order as the magnitudes of floats do, taken as `dtype` (float32 or float64); no NaN."""
    return scores.to(dtype).abs().contiguous().view(torch.int32 if dtype == torch.float32 else torch.int64).long()


def _whole(scores: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """As `native` takes them: narrow floats as they are, where they are to be float32."""
    return scores if dtype == torch.float32 and scores.dtype in native.FLOATS else scores.to(dtype)


def threshold(scores: Callable[[], Iterable[torch.Tensor]], k: int, dtype: torch.dtype) -> tuple[int, int]:
    """The key of the k-th lowest score, and how many with that very key are among the k lowest.

    Args:
        scores: called once per pass; yields the scores in pieces.
        k: 1 <= k <= number of scores.
        dtype: float32 or float64, by which they are compared.
    """
    prefix, left, bits = 0, k, 8 * dtype.itemsize
    for shift in range(bits - _DIGIT, -1, -_DIGIT):
        counts, short = torch.zeros(1 << _DIGIT, dtype=torch.int64, device="cpu"), dtype == torch.float32
        for piece in scores():
            short = short and piece.dtype == torch.bfloat16
            if native.takes(piece, also=(torch.float64,)):
                native.histogram(_whole(piece, dtype), shift, prefix, counts)
                continue
            found = keys(piece.reshape(-1), dtype)
            if shift + _DIGIT < bits:
                found = found[found >> (shift + _DIGIT) == prefix]
            counts += torch.bincount((found >> shift) & ((1 << _DIGIT) - 1), minlength=1 << _DIGIT).cpu()
        reached = counts.cumsum(0)
        digit = int(torch.searchsorted(reached, left))
        left -= int(reached[digit - 1]) if digit else 0
        prefix = prefix << _DIGIT | digit
        if short:  # all other bits are 0
            return prefix << shift, left
    return prefix, left


def lowest(scores: Iterable[torch.Tensor], key: int, ties: int, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """For every piece of the scores which of them lie below `key`, or are among the first `ties` that equal it: bool, same shapes."""
    for piece in scores:
        if native.takes(piece, also=(torch.float64,)):
            out, equal = native.lowest(_whole(piece, dtype), key, ties)
            ties -= min(ties, equal)
            yield out
            continue
        found = keys(piece, dtype)
        out = found < key
        if ties:
            equal = (found == key).reshape(-1).nonzero()[:ties, 0]
            out.reshape(-1)[equal] = True
            ties -= len(equal)
        yield out


def lowest_per_row(scores: torch.Tensor, k: int) -> torch.Tensor:
    """The k lowest of each row of [R, C], ties by lowest index: bool [R, C]."""
    if 0 < k < scores.shape[1] and native.takes(scores, also=(torch.float64,)):
        return native.lowest_per_row(scores, k)
    wide = scores if scores.dtype == torch.float64 else scores.float()
    order = torch.sort(wide.abs(), dim=1, stable=True).indices[:, :k]
    return torch.zeros(scores.shape, dtype=torch.bool, device=scores.device).scatter_(1, order, True)
