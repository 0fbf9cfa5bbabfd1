"""Compiled kernels are held to the baseline before any is used: a fault of an instruction set that could not be tested costs speed, never a model."""

from __future__ import annotations

import logging

import numpy as np
import torch

from worker.kernels import alias, native, scale_search
from worker.kernels.uniform import Levels


def hold_to_baseline() -> None:
    """Go down from the best instruction set until everything agrees with the baseline on a sample."""
    best = native.use(-1)
    native.use(0)
    expected = sampled()
    for level in range(best, -1, -1):
        native.use(level)
        if sampled() == expected:
            break
        logging.getLogger(__name__).error("kernels for %s differ from the baseline on this processor and are not used", native.LEVELS[level])


def sampled() -> list[bytes]:
    """What kernels with code of their own for an instruction set make of a few thousand values."""
    values = torch.from_numpy((np.sin(np.arange(5_000.0) ** 1.5) ** 5).astype(np.float32).reshape(4, 1250))
    out = []
    for dtype in native.FLOATS:
        for levels in (Levels(2), Levels(4), Levels(8), Levels(8, floating=True)):
            codes, scale = native.quantize(values.to(dtype), levels, 129, None if levels.floating else scale_search.multipliers(levels.num_bits), torch.float16)
            dense = native.dequantize(codes, scale, None, 129, dtype, False)
            out += [t.view(torch.uint8).numpy().tobytes() for t in (codes, scale, dense)]
        out += [repr(native.extents(values.to(dtype), 129)).encode(), native.lowest_per_row(values.to(dtype), 400).numpy().tobytes()]
    plane = native.split(values.reshape(-1).numpy().view(np.uint32))[0]
    stream, escapes = alias.encode(plane, native.bytes_count(plane))
    words = np.where(plane & 1, plane, 0).astype(np.uint16)
    mask, kept, _ = native.compact(words)
    out += [mask.tobytes(), kept.tobytes(), native.spread(mask, kept, len(words)).tobytes()]
    return [*out, stream, alias.decode(stream, len(plane), escapes).tobytes()]
