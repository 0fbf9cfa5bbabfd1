"""Weighted means under a small window at each place of a plane: products with band matrices, which are several times as fast as convolutions of so few weights."""

from __future__ import annotations

import functools

import torch

_BLOCK = 54


def means(x: torch.Tensor, down: tuple[float, ...], across: tuple[float, ...]) -> torch.Tensor:
    """At each place where the window lies within.

    Args:
        x: [..., H, W] float32.
        down, across: the window's weights.

    Returns:
        [..., H - len(down) + 1, W - len(across) + 1]
    """
    *outer, height, width = x.shape
    made = [_across(_down(one, down), across) for one in x.reshape(-1, height, width)]
    return torch.stack(made).reshape(*outer, height - len(down) + 1, width - len(across) + 1)


def _down(x: torch.Tensor, weights: tuple[float, ...]) -> torch.Tensor:
    """`_BLOCK` rows of means at a time are one product."""
    out = torch.empty(len(x) - len(weights) + 1, x.shape[1])
    for at in range(0, len(out), _BLOCK):
        rows = out[at : at + _BLOCK]
        band = _band(weights, len(rows))
        torch.matmul(band.T, x[at : at + len(band)], out=rows)
    return out


def _across(x: torch.Tensor, weights: tuple[float, ...]) -> torch.Tensor:
    """The same by columns."""
    out = torch.empty(len(x), x.shape[1] - len(weights) + 1)
    for at in range(0, out.shape[1], _BLOCK):
        columns = out[:, at : at + _BLOCK]
        band = _band(weights, columns.shape[1])
        torch.matmul(x[:, at : at + len(band)], band, out=columns)
    return out


@functools.lru_cache(256)
def _band(weights: tuple[float, ...], count: int) -> torch.Tensor:
    """[count + len(weights) - 1, count]: the window's weights at each of `count` places."""
    band = torch.zeros(count + len(weights) - 1, count)
    for i, w in enumerate(weights):
        band.diagonal(-i).fill_(w)
    return band
