"""What is left of a linear layer, set so that it gives what the whole layer gave: least squares on its inputs, row by row, without the inputs themselves.

With X the inputs [T, I], W the whole weights [O, I] and Z those that are left, |X (Z - W)^T|^2 = tr (Z - W) G (Z - W)^T with G = X^T X, so the sums G say all
that counts. Every row is a problem of its own in the entries that its mask keeps, solved by conjugate gradients (Hestenes and Stiefel, 1952), all rows side by
side: each iteration is one product with G, whatever the masks. Layer by layer: Hassibi and Stork, 1993, "Optimal Brain Surgeon"; Frantar and Alistarh,
2023, "SparseGPT", which solves the same greedily, column after column; Boža, 2024, "Fast and Effective Weight Update for Pruned Large Language Models".
"""

from __future__ import annotations

import torch

DAMPING, ITERATIONS = 0.03, 20
_PART = 1 << 22  # elements of weights that are solved for together


def solve(
    weights: torch.Tensor, mask: torch.Tensor, gram: torch.Tensor, products: torch.Tensor, damping: float = DAMPING, iterations: int = ITERATIONS
) -> torch.Tensor:
    """The Z [O, I], zero where the mask is, of the least tr Z G Z^T - 2 tr P Z^T + d |Z - W|^2.

    Args:
        weights: W, where the search begins, once masked, and near which it stays: [O, I].
        mask: bool [O, I], True where a weight is left.
        gram: G, [I, I], positive semidefinite.
        products: P = Y^T X, [O, I], of the inputs with what is to come out; W G where that is what the weights gave.
        damping: d in units of the mean of G's diagonal: what few samples do not say stays as it was.
        iterations: each makes the error smaller; few of them leave what G hardly sees alone.

    Returns:
        in the type of `weights`.
    """
    rows = max(1, _PART // max(1, weights.shape[1]))
    parts = zip(weights.split(rows), mask.split(rows), products.split(rows), strict=True)
    d = damping * gram.diagonal().mean()
    return torch.cat([_part(w, m, gram, p, d, iterations) for w, m, p in parts]) if len(weights) else weights.clone()


def _part(weights: torch.Tensor, mask: torch.Tensor, gram: torch.Tensor, products: torch.Tensor, d: torch.Tensor, iterations: int) -> torch.Tensor:
    tiny = torch.finfo(weights.dtype).tiny
    preconditioner = mask / (gram.diagonal() + d).clamp_min(tiny)
    z = weights * mask
    residual = (products - z @ gram + d * (weights - z)) * mask
    step = residual * preconditioner
    size = (residual * step).sum(1, keepdim=True)
    for _ in range(iterations):
        image = (step @ gram + d * step) * mask
        along = size / (step * image).sum(1, keepdim=True).clamp_min(tiny)
        z += along * step
        residual -= along * image
        scaled = residual * preconditioner
        before, size = size, (residual * scaled).sum(1, keepdim=True)
        step = scaled + size / before.clamp_min(tiny) * step
    return z
