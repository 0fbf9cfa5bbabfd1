"""Levels of codebooks by their codes."""

from __future__ import annotations

import torch

_PART = 1 << 18  # elements looked up at a time: their indices take 8 bytes each


def look_up(codes: torch.Tensor, levels: torch.Tensor, group_size: int) -> torch.Tensor:
    """value[r, c] = levels[k, codes[r, c]], where k is 0 for one codebook, else r * G + c // group_size with G = max(1, ceil(I / group_size)).

    Args:
        codes: uint8 [R, I], each below L.
        levels: [K, L] of any dtype that float32 holds; K is 1 or R * G, the groups of a row one after another.
        group_size: inputs that share a codebook; the last group may be short.

    Returns:
        float32 [R, I].
    """
    count, size = levels.shape
    (rows, columns), device = codes.shape, codes.device
    flat = levels.float().reshape(-1)
    out = torch.empty(rows, columns, dtype=torch.float32, device=device)
    first = torch.arange(rows, device=device)[:, None] * max(1, -(-columns // group_size))
    step = max(1, _PART // max(1, rows))
    for i in range(0, columns, step):
        part = codes[:, i : i + step]
        where = part.long()
        if count > 1:
            where += (first + torch.arange(i, i + part.shape[1], device=device) // group_size) * size
        out[:, i : i + step] = flat[where]
    return out
