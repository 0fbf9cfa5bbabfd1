"""Scales and offsets of groups that are integers of a few bits under one float16 for several groups, as ggml's K-quants have them.

    [N, K, g]    N spans of K groups of g values      scale [N, K, 1] = (above [N, 1, 1] * code [N, K, 1]) * 2^exponent

Codes of scales are signed, in [-2^(b-1), 2^(b-1) - 1], where there is no offset, and unsigned beside one; those of offsets are unsigned. `above` is a
float16 (its product with a code is exact in float32), and one power of two for the whole tensor keeps it in range.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from worker.kernels import affine, native
from worker.kernels.uniform import Levels, over

Decoded = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""(x, scale, offset) -> what the nearest codes of x decode to."""
_ROUNDS = 2


class Coded(NamedTuple):
    """`codes` [N, K, 1], float32 holding integers, under `above` [N, 1, 1], float32 holding float16s."""

    codes: torch.Tensor
    above: torch.Tensor

    def floats(self, exponent: int) -> torch.Tensor:
        return self.above * self.codes * 2.0**exponent


def exponent_of(largest: float) -> int:
    """Of a tensor by its largest magnitude: that takes it to at least 2^14 and below 2^15, so that everything down to 2^-38 of it has a float16."""
    return max(-126, min(126, int(torch.frexp(torch.tensor(largest, dtype=torch.float64, device="cpu"))[1]) - 15))


def coded(values: torch.Tensor, bits: int, signed: bool, exponent: int) -> Coded:
    """`values` [N, K, 1] as codes; the one of largest magnitude gets the code of largest magnitude."""
    top = values.abs().amax(-2, keepdim=True)
    if signed:
        first = torch.gather(values, -2, values.abs().argmax(-2, keepdim=True))
        low, high = -float(1 << (bits - 1)), float((1 << (bits - 1)) - 1)
        above = over(first, low)
    else:
        low, high = 0.0, float((1 << bits) - 1)
        above = over(top, high)
    most = torch.finfo(torch.float16).max
    kept = (above * 2.0**-exponent).clamp(-most, most).half().float()
    return Coded(affine.quotient(values * 2.0**-exponent, kept).round_().clamp_(low, high), kept)


def refined(
    x: torch.Tensor, scale: Coded, offset: Coded | None, bits: int, exponent: int, decoded: Decoded, levels: affine.Unsigned, weight: torch.Tensor | None, zero: bool
) -> tuple[Coded, Coded | None]:
    """The same with the codes of each group moved by one where that loses less, twice: every scale nearby with the offset that fits it best."""
    size = affine.size_of(x.flatten(-2))[..., None]
    low, high = (0.0, float((1 << bits) - 1)) if offset is not None else (-float(1 << (bits - 1)), float((1 << (bits - 1)) - 1))
    if x.dtype == torch.float32 and x.numel() and native.takes(x) and isinstance(levels, affine.Unsigned if offset else Levels) and not getattr(levels, "floating", False):
        of = getattr(levels, "low", 0.0), levels.high
        codes, offset_codes = native.affine_refine(x, size, scale, offset, exponent, of, (low, high), weight, zero, _ROUNDS)
        return Coded(codes, scale.above), None if offset is None else Coded(offset_codes, offset.above)
    unit, d = x / size, scale.above * 2.0**exponent / size
    m = None if offset is None else offset.above * 2.0**exponent / size
    best, best_offset = scale.codes, None if offset is None else offset.codes
    error = affine.loss(unit, decoded(unit, d * best, None if m is None else m * best_offset), weight)

    def keep(code, offset_code, found, below) -> None:
        nonlocal error, best, best_offset
        less = (loss := affine.loss(unit, decoded(unit, found, below), weight)) < error
        error, best = torch.where(less, loss, error), torch.where(less, code, best)
        best_offset = None if m is None else torch.where(less, offset_code, best_offset)

    for _ in range(_ROUNDS):
        start, start_offset = best, best_offset
        for move in (-1.0, 0.0, 1.0):
            code = (start + move).clamp(low, high)
            found = d * code
            if m is None:
                keep(code, None, found, None)
                continue
            near = affine.encode(unit, found, m * start_offset, levels, zero)
            fitted = affine.quotient(affine.fit_offset(near, unit, found, weight), m).floor_()
            for up in (0.0, 1.0):
                offset_code = (fitted + up).clamp(low, high)
                keep(code, offset_code, found, m * offset_code)
    return Coded(best, scale.above), None if offset is None else Coded(best_offset, offset.above)
