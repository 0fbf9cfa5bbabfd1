"""Rounding and pruning, one input after another, with the error of each made up for by the inputs after it, so that the layer's output changes least.

With X [tokens, I] what goes into a layer, H = X^T X + damping, and U the upper triangular factor of its inverse, H^-1 = U^T U, input j in turn:

    q = round(w_j), or 0 where the weight is pruned
    e = (w_j - q) / U_jj
    w_k = w_k - e U_jk    for all inputs k after j

Within a block of inputs at once, behind the block by one product (lazy batches). Sources: Frantar et al., 2023, "GPTQ: Accurate Post-Training Quantization
for Generative Pre-trained Transformers"; Frantar and Alistarh, 2023, "SparseGPT", whose mask is chosen at the start of each block, by w^2 / U_jj^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from worker.kernels import native_compensation

BLOCK = 128
"""Inputs whose errors are spread together."""
_WIDEST = 1024
_TRIES = 6


class Grid(Protocol):
    """The levels of a matrix; `size` inputs in a row share their parameters, the last ones may be fewer. 0 has a level that is exactly 0."""

    size: int

    def begin(self, start: int, x: torch.Tensor, weight: torch.Tensor) -> None:
        """Choose the parameters of the inputs from `start` on, of values x [O, g]; a squared error at input j counts weight[j]."""

    def round(self, j: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes and values of input j, [O] each, float32."""

    def line(self, j: int) -> Line | None:
        """What `round` does, from input j to the end of its group, if levels are at equal distance."""


@dataclass(frozen=True)
class Line:
    """Levels at equal distance: codes are integers within [low, high], `value = (code - zero) * scale`.

    Args:
        scale, zero: float32 [O] or [1]; zero None where it is 0.
    """

    scale: torch.Tensor
    zero: torch.Tensor | None
    low: float
    high: float


Choose = Callable[[torch.Tensor, int], torch.Tensor]
"""Scores of a block's inputs, [O, B], and where it begins -> which are dropped, bool [O, B]."""


@dataclass(frozen=True)
class Solved:
    """Of a matrix [O, I]: values float32, codes float32 (None without a grid), kept bool (None where nothing is pruned)."""

    values: torch.Tensor
    codes: torch.Tensor | None
    kept: torch.Tensor | None


def factor(gram: torch.Tensor, damping: float) -> tuple[torch.Tensor, float]:
    """U upper triangular [I, I] float32 with (gram + d I)^-1 = U^T U, and d as a share of the mean of the diagonal.

    An input that is 0 throughout counts as one of mean size that goes with no other: its weights are rounded by themselves. Where the matrix is not positive
    definite in float32 the damping is multiplied by 10 until it is.

    Args:
        gram: [I, I], X^T X, floating; not written to.

    Raises:
        ValueError: no damping helps: the matrix is not finite.
    """
    mean = float(gram.diagonal().double().mean())
    mean = mean if mean > 0 else 1.0
    for _ in range(_TRIES):
        damped = gram.flip(0, 1) / mean  # its Cholesky factor, with rows and columns turned round again, is an upper one: H = R R^T, so that U = R^-1
        damped.diagonal().copy_(torch.where(damped.diagonal() == 0, 1.0, damped.diagonal()) + damping)
        lower, failed = torch.linalg.cholesky_ex(damped.float())
        if not int(failed):
            identity = torch.eye(len(gram), dtype=lower.dtype, device=gram.device)
            upper = torch.linalg.solve_triangular(lower, identity, upper=False).flip(0, 1).div_(math.sqrt(mean))
            if bool(torch.isfinite(upper).all()):
                return upper.contiguous(), damping
        damping *= 10
    raise ValueError("the second moments of the inputs have no inverse")


def solve(
    w: torch.Tensor,
    upper: torch.Tensor,
    grid: Grid | None = None,
    choose: Choose | None = None,
    kept: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    together: int = 1,
) -> Solved:
    """Round to `grid`, drop what `choose` says, or both.

    Args:
        w: float32 [O, I]; not written to.
        upper: see `factor`.
        grid: None leaves values as they come.
        choose: for a mask that is found here.
        kept: bool [O, I], a mask that is there already.
        weight: [I], what errors at each input count when the parameters of the grid are chosen; None: all alike.
        together: so many inputs in a row are in one block, for an N:M mask.
    """
    w, weight = w.clone(memory_format=torch.contiguous_format), torch.ones_like(w[0]) if weight is None else weight
    codes = None if grid is None else torch.zeros_like(w)
    kept = torch.ones_like(w, dtype=torch.bool) if choose else kept
    diagonal, compiled = upper.diagonal(), grid is not None and native_compensation.takes(w, upper, kept)
    for start, end in blocks(w.shape[1], grid.size if grid else 1, together):
        block, errors = w[:, start:end], torch.zeros_like(w[:, start:end])
        if choose:
            kept[:, start:end] = ~choose((block / diagonal[start:end]).square_(), start)
        j = start
        while j < end:
            if grid and j % grid.size == 0:
                group = slice(j, j + grid.size)
                grid.begin(j, w[:, group] if kept is None else w[:, group] * kept[:, group], weight[group])
            if compiled and (line := grid.line(j)):
                behind = min(end, j - j % grid.size + grid.size)
                native_compensation.rounded(w, codes, errors, kept, upper, (start, end), (j, behind), line)
                j = behind
                continue
            x = block[:, j - start]
            left = x if kept is None else x * kept[:, j]
            code, q = grid.round(j, left) if grid else (None, left)
            error = (x - q) / diagonal[j]
            block[:, j - start + 1 :] -= error[:, None] * upper[j, j + 1 : end]
            errors[:, j - start] = error
            block[:, j - start] = q
            if codes is not None:
                codes[:, j] = code
            j += 1
        w[:, end:] -= errors @ upper[start:end, end:]
    return Solved(w, codes, kept)


def blocks(inputs: int, size: int, together: int = 1) -> Iterator[tuple[int, int]]:
    """(start, end) of blocks that end with a group of `size` inputs, where groups are no wider than blocks, and with `together` inputs."""
    multiple = math.lcm(size, together)
    multiple = multiple if multiple <= _WIDEST else together
    step = multiple * max(1, BLOCK // multiple)
    return ((start, min(start + step, inputs)) for start in range(0, inputs, step))


def output_error(w: torch.Tensor, q: torch.Tensor, gram: torch.Tensor) -> float:
    """|(W - Q) X^T|^2 / |W X^T|^2, of matrices [O, I] and X^T X; 0 where the layer's output is 0."""
    d, whole = (w - q).double(), w.double()
    gram = gram.double()
    energy = float(((whole @ gram) * whole).sum())
    return float(((d @ gram) * d).sum()) / energy if energy > 0 else 0.0
