"""What a weight is worth, and the sum of it over what is kept or dropped together. Scores are >= 0.

With w a weight, g_s its gradient for sample s, A = sum_s |g_s| and S = sum_s g_s^2 (signed sums would cancel and say nothing):

    saliency    l1             l2                 source
    magnitude   |w|            w^2                Han et al., 2015, "Learning both Weights and Connections"
    gradient    A              S                  Mozer and Smolensky, 1989, "Skeletonization", per weight
    taylor      |w| A          w^2 S              Molchanov et al., 2019, "Importance Estimation for Neural Network Pruning"
    fisher      w^2 S          (w^2 S)^2          LeCun et al., 1990, "Optimal Brain Damage", with the empirical Fisher as the Hessian

These add up over the members of a block or a channel. Single weights (unstructured and N:M) are only ranked, where l1 and l2 of magnitude agree, as do
those of fisher; `taylor` with `l2` is `fisher` with `l1` everywhere.
"""

from __future__ import annotations

import torch

from worker.kernels.sums import ordered_sum

_PART = 1 << 18  # elements that are float64 at a time


def statistic(saliency: str, norm: str) -> str | None:
    """Which sum over samples a saliency is made of: `absolute` (A), `square` (S), or None."""
    if saliency == "magnitude":
        return None
    return "absolute" if norm == "l1" and saliency != "fisher" else "square"


def power(w: torch.Tensor, g: torch.Tensor | None, saliency: str, norm: str) -> torch.Tensor:
    """The table above for each weight, same shape, float64.

    Args:
        g: A or S as `statistic` says, the shape of `w`; None for magnitude.
    """
    w = w.double()
    if saliency == "magnitude":
        return w.abs() if norm == "l1" else w.square()
    g = g.double()
    if saliency == "gradient":
        return g
    if saliency == "taylor" and norm == "l1":
        return w.abs() * g
    fisher = (w.square() * g).nan_to_num_(nan=0.0, posinf=torch.inf)  # the square of a float64 can be infinite, and its gradient 0
    return fisher.square() if saliency == "fisher" and norm == "l2" else fisher


def weights(w: torch.Tensor, g: torch.Tensor | None = None, saliency: str = "magnitude", norm: str = "l2") -> torch.Tensor:
    """For each weight what ranks, by its magnitude, as `power` does: of `magnitude` the weights themselves, else float64."""
    if saliency == "magnitude":
        return w
    return power(w, g, saliency, "l1" if saliency == "fisher" else norm)


def channels(w: torch.Tensor, g: torch.Tensor | None, saliency: str, norm: str) -> torch.Tensor:
    """Of each output channel of [O, I]: the sum of `power`, [O] float64."""
    step = max(1, _PART // max(1, w.shape[1]))
    sums = [ordered_sum(power(w[i : i + step], _rows(g, i, step), saliency, norm)) for i in range(0, w.shape[0], step)]
    return torch.cat(sums) if sums else w.new_zeros(0).double()


def blocks(w: torch.Tensor, g: torch.Tensor | None, saliency: str, norm: str, rows: int, columns: int) -> torch.Tensor:
    """Of each block of [O, I]: [ceil(O / rows), ceil(I / columns)] float64. Blocks at the edge are summed over what they have."""
    out = []
    for i in range(0, w.shape[0], rows):
        part = power(w[i : i + rows], _rows(g, i, rows), saliency, norm)
        part = torch.nn.functional.pad(part, (0, -w.shape[1] % columns))
        grouped = part.unflatten(1, (-1, columns)).transpose(0, 1).flatten(1)
        out.append(ordered_sum(grouped))
    return torch.stack(out) if out else w.new_zeros(0, -(-w.shape[1] // columns), dtype=torch.float64)


def _rows(g: torch.Tensor | None, start: int, count: int) -> torch.Tensor | None:
    return None if g is None else g[start : start + count]


def spread(dropped: torch.Tensor, rows: int, columns: int, shape: tuple[int, int]) -> torch.Tensor:
    """Blocks back to their weights: bool [O, I]."""
    return dropped.repeat_interleave(rows, 0)[: shape[0]].repeat_interleave(columns, 1)[:, : shape[1]]
