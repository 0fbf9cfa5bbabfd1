"""Weights to the levels of codebooks when it counts what their codes take: rate and distortion together.

    code(w) = argmin_l  F (w - level_l)^2  +  lambda * bits(l)

F is how much the loss feels the weight (its Fisher information), bits(l) the length of the code under the frequencies of the codes as they are, so that
what is written more often gets cheaper and what hardly counts moves there: entropy-constrained quantization (Chou, Lookabaugh and Gray, 1989), as in
DeepCABAC (Wiedemann et al., 2020). A level of zero takes part as any other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_PART = 1 << 20  # of weights times levels looked at together


def code_bits(codes: torch.Tensor, levels: int) -> torch.Tensor:
    """float32 [levels]: -log2 of the share of each of `codes` (of any shape), with one half added to every count so that none is infinite."""
    counts = torch.bincount(codes.reshape(-1).long(), minlength=levels).float() + 0.5
    return -(counts / counts.sum()).log2()


def zero_bits(kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What it takes to say that a weight is kept, and that it is not, where both the column and the row tell how likely that is: two float32 [O, I].

    The probability is that of the column, times how much denser the row is than the whole; shares are pulled towards the whole's by four observations.
    """
    rows, columns = kept.shape
    kept = kept.float()
    share = kept.mean().clamp_min(1 / max(1, kept.numel()))
    column = (kept.sum(0) + 4 * share) / (rows + 4)
    row = (kept.sum(1) + 4) / (columns * share + 4)
    p = (row[:, None] * column).clamp(1e-4, 0.9)
    return -p.log2(), -(1 - p).log2()


@dataclass(frozen=True)
class Price:
    """What codes cost, in the unit of the distortion.

    Args:
        slope: of one bit.
        codes: float32 [L], bits of each code among those that are not zero.
        kept, dropped: float32 [O, I], see `zero_bits`.
    """

    slope: float
    codes: torch.Tensor
    kept: torch.Tensor
    dropped: torch.Tensor


def assign(w: torch.Tensor, levels: torch.Tensor, books: torch.Tensor, fisher: torch.Tensor, zero: torch.Tensor | None, price: Price | None) -> torch.Tensor:
    """The code of each weight, int64 [O, I].

    Args:
        w, fisher: float32 [O, I].
        levels: float32 [K, L].
        books: int64 [O, I], or broadcast to it: which codebook a weight has.
        zero: int64 [K], the level of each codebook that is 0 and coded apart from the others; None where none is.
        price: None goes to the nearest level.
    """
    size = levels.shape[1]
    rows, books = max(1, _PART // max(1, w.shape[1] * size)), books.expand(w.shape)
    out = []
    for i in range(0, w.shape[0], rows):
        part = slice(i, i + rows)
        distance = (w[part, :, None] - levels[books[part]]).square_().mul_(fisher[part, :, None])
        if price is not None:
            distance += price.slope * price.codes
            if zero is not None:
                of_zero = zero[books[part]][..., None]
                distance += price.slope * price.kept[part, :, None]
                distance.scatter_(2, of_zero, (fisher[part] * w[part].square() + price.slope * price.dropped[part])[..., None])
        out.append(distance.argmin(-1))
    return torch.cat(out) if out else torch.zeros_like(w, dtype=torch.long)


def summed(gradient: torch.Tensor, codes: torch.Tensor, books: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """The gradient of levels [K, L]: over the weights that have a level, their sum (Han et al., 2016, "Deep Compression")."""
    where = (books * shape[1] + codes).reshape(-1)
    return torch.zeros(shape[0] * shape[1], dtype=gradient.dtype, device=gradient.device).index_add_(0, where, gradient.reshape(-1)).reshape(shape)
