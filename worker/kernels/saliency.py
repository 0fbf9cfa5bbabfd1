"""Magnitude as saliency, summed over what is kept or dropped together. Scores are >= 0: float32 for single weights, float64 for sums."""

from __future__ import annotations

import torch

from worker.kernels.sums import ordered_sum


def weights(w: torch.Tensor) -> torch.Tensor:
    """|w| of each weight: L1 and L2 rank single weights alike. Same shape, float32 (float64 for float64)."""
    return w.abs() if w.dtype == torch.float64 else w.float().abs()


def _power(w: torch.Tensor, norm: str) -> torch.Tensor:
    w = w.double()
    return w.abs() if norm == "l1" else w.square()


def channels(w: torch.Tensor, norm: str) -> torch.Tensor:
    """Of each output channel of [O, I]: sum |w| or sum w^2, [O] float64."""
    step = max(1, (1 << 18) // max(1, w.shape[1]))
    return torch.cat([ordered_sum(_power(w[i : i + step], norm)) for i in range(0, w.shape[0], step)]) if len(w) else w.new_zeros(0).double()


def blocks(w: torch.Tensor, rows: int, columns: int, norm: str) -> torch.Tensor:
    """Of each block of [O, I]: [ceil(O / rows), ceil(I / columns)] float64. Blocks at the edge are summed over what they have."""
    out = []
    for i in range(0, w.shape[0], rows):
        part = _power(w[i : i + rows], norm)
        part = torch.nn.functional.pad(part, (0, -w.shape[1] % columns))
        grouped = part.unflatten(1, (-1, columns)).transpose(0, 1).flatten(1)
        out.append(ordered_sum(grouped))
    return torch.stack(out) if out else w.new_zeros(0, -(-w.shape[1] // columns), dtype=torch.float64)


def spread(dropped: torch.Tensor, rows: int, columns: int, shape: tuple[int, int]) -> torch.Tensor:
    """Blocks back to their weights: bool [O, I]."""
    return dropped.repeat_interleave(rows, 0)[: shape[0]].repeat_interleave(columns, 1)[:, : shape[1]]
