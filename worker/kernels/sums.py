"""Sums in a fixed order, so that every machine and every implementation gets the same bits.

    128 values     16 partial sums: value i goes to sum i mod 16, ascending     then a tree: 8 + 8, 4 + 4, 2 + 2, 1 + 1
    more           block sums of 128, added one after the other
"""

from __future__ import annotations

import numpy as np
import torch

_LANES, _BLOCK = 16, 128


def ordered_sum(x: torch.Tensor) -> torch.Tensor:
    """Sum over the last dimension: [..., n] -> [...], in the dtype of `x` (float32 or float64). Elementwise additions only."""
    n = x.shape[-1]
    if n <= _BLOCK:
        return _block_sum(x)
    blocks = _block_sum(_padded(x, _BLOCK).unflatten(-1, (-1, _BLOCK)))
    # numpy's accumulate is sequential in the dtype itself; torch's cumsum is neither promised to be, nor the same on every device
    return torch.from_numpy(np.add.accumulate(blocks.cpu().numpy(), axis=-1)[..., -1].copy()).to(x.device)


def _block_sum(x: torch.Tensor) -> torch.Tensor:
    lanes = _padded(x, _LANES).unflatten(-1, (-1, _LANES))
    total = lanes[..., 0, :].clone() if lanes.shape[-2] else lanes.new_zeros((*lanes.shape[:-2], _LANES))
    for i in range(1, lanes.shape[-2]):
        total += lanes[..., i, :]
    for width in (8, 4, 2, 1):
        total = total[..., :width] + total[..., width:]
    return total[..., 0]


def _padded(x: torch.Tensor, multiple: int) -> torch.Tensor:
    """Zeros at the end change no sum."""
    short = -x.shape[-1] % multiple
    return torch.nn.functional.pad(x, (0, short)) if short else x
