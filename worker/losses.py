"""What is differentiated: one number for each sample of a batch, so that its gradients say how much the model's output depends on each weight.

    labels                        cross entropy; squared error for a regressor
    causal-lm, seq2seq            the negative log likelihood of a text that the model itself draws, position by position
    everything else               the output times random signs and sizes: r . f(x), r ~ N(0, 1)

Both without labels are unbiased for what the output does: E[g^2] is the diagonal of the Gauss-Newton matrix of |f(x) - f'(x)|^2 for the projection, and the
Fisher information, the curvature of KL, for the drawn text (Martens, 2020, "New Insights and Perspectives on the Natural Gradient Method"; Kunstner et al.,
2019, on why the text as it stands, the "empirical" Fisher, is not). A classifier's logits are projected without what all classes have in common, which
changes no probability; drawing its classes would leave nothing to see of a model that is sure.
"""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy, log_softmax, softmax

from worker.samples.data import Batch

_POSITIONS = 64  # of a text, whose distributions are in memory together


def losses(task: str, output: torch.Tensor, batch: Batch, seed: int) -> torch.Tensor:
    """[n], one of each sample; what is drawn for a sample depends on `seed` and its position alone, neither on the batch nor on the device.

    Args:
        output: of `Runnable.forward` on `batch`.
    """
    if batch.labels is not None:
        return labelled(task, output, batch.labels)
    drawn = [torch.Generator().manual_seed((seed * 1_000_003 + i) % (1 << 63)) for i in batch.positions]
    if task in ("causal-lm", "seq2seq"):
        return torch.stack([_drawn_text(_predictions(task, logits, mask), g) for logits, mask, g in zip(output, batch.counted(output), drawn, strict=True)])
    return torch.stack([_projected(task, one, None if batch.mask is None else batch.mask[i], drawn[i]) for i, one in enumerate(output)])


def labelled(task: str, output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[n]: cross entropy of logits [n, C] to classes [n]; of a regressor the squared error, summed over its outputs."""
    if task == "regressor":
        return (output.flatten(1) - labels.flatten(1)).square().sum(1)
    return cross_entropy(output, labels, reduction="none")


def _predictions(task: str, logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[P, V]: the rows that predict a token which is there."""
    return logits[:-1][mask[1:] & mask[:-1]] if task == "causal-lm" else logits[mask]


def _drawn_text(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    at = torch.rand(len(logits), 1, dtype=torch.float64, generator=generator).to(logits.device)
    with torch.no_grad():  # by the inverse of the distribution function, so that a position takes one random number, whatever the vocabulary
        token = torch.cat([_inverse(part, u) for part, u in zip(logits.split(_POSITIONS), at.split(_POSITIONS), strict=True)])
    return -log_softmax(logits, -1).gather(1, token).sum()


def _inverse(logits: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """int64 [P, 1]: the classes at which the distribution functions of logits [P, V] pass u [P, 1] in [0, 1)."""
    ladder = softmax(logits.double(), -1).cumsum(-1)
    return torch.searchsorted(ladder, u * ladder[:, -1:], right=True).clamp_(max=logits.shape[-1] - 1)


def _projected(task: str, output: torch.Tensor, mask: torch.Tensor | None, generator: torch.Generator) -> torch.Tensor:
    r = torch.randn(output.shape, generator=generator).to(output.device)
    if task == "classifier":
        r = r - r.mean(-1, keepdim=True)
    elif mask is not None and output.shape[:1] == mask.shape and output.ndim > 1:
        r = r * mask.to(r.dtype).reshape(-1, *[1] * (output.ndim - 1))
    return (r * output).sum()
