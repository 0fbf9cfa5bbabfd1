"""Matrices of every kind that has its own way to go wrong in a kernel."""

from __future__ import annotations

import torch


def kinds(rows: int, columns: int, seed: int) -> dict[str, torch.Tensor]:
    """float32 [rows, columns] by name."""
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.02
    heavy = x.clone()
    heavy[:, ::5] *= 40
    tied = (x * 100).round() / 8
    return {"plain": x, "heavy": heavy, "tied": tied, "constant": torch.full_like(x, 0.3), "zeros": torch.zeros_like(x), "negative": -x.abs(), "huge": x * 1e38, "tiny": x * 1e-41}
