"""The best levels by dynamic programming over intervals (Fisher, 1958; Wang and Song, 2011, Ckmeans.1d.dp): values in order are cut into bins, and the
bins into as many runs as there are levels, so that the weighted squared error within the runs is least. Exact where every value has a bin of its own.

    best[l, j] = min over i of  best[l - 1, i] + error of bins i .. j - 1 around their mean
"""

from __future__ import annotations

import torch

from worker.kernels.levels import shares

_CELLS = 1 << 19  # of the tables of errors that are made together


def best(x: torch.Tensor, f: torch.Tensor, size: int, bins: int) -> torch.Tensor:
    """Levels of K codebooks.

    Args:
        x, f: float32 [K, n].
        size: levels of a codebook, up to `bins`.
        bins: equal shares of the levels' density, see `worker.kernels.levels`; n where there are no more values.

    Returns:
        float32 [K, size], ascending; a level that nothing needs repeats another.
    """
    step = max(1, _CELLS // (bins + 1) ** 2)
    return torch.cat([_best(*_prefixes(a, b, bins), size) for a, b in zip(x.split(step), f.split(step), strict=True)])


def _prefixes(x: torch.Tensor, f: torch.Tensor, bins: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sums of f, f x and f x^2 over the first bins: float64 [3, K, bins + 1], with x as (x - mean) / scale; and [K, 1] that mean and that scale."""
    x, f, reached = shares(x, f)
    if x.shape[1] <= bins:
        which = torch.arange(x.shape[1], device=x.device).expand(x.shape)
    else:
        which = (reached / reached[:, -1:].clamp(min=1e-300) * bins).long().clamp_(0, bins - 1)
    f = f / f.amax(1, keepdim=True).clamp(min=1e-300)
    mean = (f * x).sum(1, keepdim=True) / f.sum(1, keepdim=True).clamp(min=1e-300)
    scale = (x - mean).abs().amax(1, keepdim=True).clamp(min=1e-300)
    x = (x - mean) / scale
    sums = torch.stack([torch.zeros(len(x), bins, dtype=torch.float64, device=x.device).scatter_add_(1, which, t) for t in (f, f * x, f * x * x)])
    return torch.nn.functional.pad(sums.cumsum(2), (1, 0)), mean, scale


def _best(prefixes: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor, size: int) -> torch.Tensor:
    a, b, c = (p[:, None, :] - p[:, :, None] for p in prefixes)  # [K, from, to]
    error = c - b.square() / a.clamp(min=1e-300)
    ends = torch.arange(error.shape[1], device=error.device)
    error = error.clamp_(min=0).masked_fill_(ends[:, None] > ends, torch.inf).float()
    reached, cuts = error[:, 0], []
    for _ in range(size - 1):
        reached, cut = (reached[:, :, None] + error).min(dim=1)
        cuts.append(cut)
    end = torch.full((len(error), 1), error.shape[1] - 1, device=error.device)
    out = []
    for cut in [*reversed(cuts), None]:
        start = torch.zeros_like(end) if cut is None else cut.gather(1, end)
        mass, total = ((p.gather(1, end) - p.gather(1, start)) for p in prefixes[:2])
        level = total / mass.clamp(min=1e-300) * scale + mean
        out.append(level if not out else torch.where(mass > 0, level, out[-1]))
        end = start
    return torch.cat(out, dim=1).float().sort(dim=1).values
