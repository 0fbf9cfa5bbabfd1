"""What a hidden unit of a feed-forward layer is worth: the sum of `saliency.power` over everything that goes with it."""

from __future__ import annotations

import torch

from worker.kernels import saliency


def sums(w: torch.Tensor, g: torch.Tensor | None, kind: str, norm: str, dim: int, blocks: int) -> torch.Tensor:
    """Of each of F units: what belongs to it in one tensor, [F] float64.

    Args:
        w: rank 1 or 2; its units lie along `dim`, in `blocks` runs of F one after another.
        g: see `saliency.power`; the shape of `w`.
        kind: `magnitude`, `gradient`, `taylor` or `fisher`.
    """
    rows, of = (None if t is None else t.movedim(dim, 0).reshape(t.shape[dim], -1) for t in (w, g))
    found = saliency.channels(rows, of, kind, norm).reshape(blocks, -1)
    total = found[0]
    for other in found[1:]:
        total = total + other
    return total


def places(kept: torch.Tensor, units: int, blocks: int) -> torch.Tensor:
    """Where the units `kept` (int64, ascending) lie in `blocks` runs of `units`."""
    return torch.cat([kept + block * units for block in range(blocks)])
