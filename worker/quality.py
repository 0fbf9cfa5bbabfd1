"""How far a model's answers are from those of the original, accumulated batch by batch in float64. Pure maths: what is run, and on what, is
`worker.measuring`'s.

    Cosine        cosine, cosine_min                                  per sample, of its whole output
    Error         relative_output_error                               |before - after| / |before| over all samples (Frobenius)
    Divergence    kl, kl_p99, kl_max, top1_agreement                  per position: KL(before || after) in nats, and whether the likeliest class is the same
    Perplexity    perplexity_before, perplexity_after                 exp of the mean negative log-likelihood, in nats, of the token that follows
    Accuracy      accuracy_before, accuracy                           share of samples whose likeliest class is the label

`add` takes the original's outputs before the compressed model's. A figure that is not finite, or of which nothing was added, is None.
"""

from __future__ import annotations

import math

import numpy as np
import torch

_BLOCK = 1 << 21  # values that are float64 at a time


def log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """log softmax over the last axis, float64. A class whose logit is -inf has probability 0."""
    return torch.log_softmax(logits.double(), -1)


def divergence(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """KL(before || after) of each row of two matrices of log-probabilities [P, V], in nats; never negative, +inf where `after` excludes what is possible."""
    terms = before.exp() * (before - after)
    return torch.where(before == -math.inf, 0.0, terms).sum(-1).clamp_min(0)  # clamp keeps NaN


class Cosine:
    """Outputs [N, ...], of which each sample is seen as one vector. Two vectors of zeros have cosine 1, and one has 0 with any other."""

    def __init__(self):
        self.count, self.sum, self.least = 0, 0.0, math.inf

    def add(self, before: torch.Tensor, after: torch.Tensor) -> None:
        x, y = (t.reshape(len(t), -1).double() for t in (before, after))
        x, y = (t / _or_one(t.abs().amax(1, keepdim=True)) for t in (x, y))  # squares of large values stay finite
        norms = x.norm(dim=1), y.norm(dim=1)
        cosine = ((x * y).sum(1) / _or_one(norms[0] * norms[1])).clamp(-1, 1)
        cosine = torch.where((norms[0] == 0) & (norms[1] == 0), 1.0, cosine)
        self.count += len(cosine)
        self.sum += cosine.sum().item()
        self.least = _least(self.least, cosine.min().item())

    def figures(self) -> dict[str, float | None]:
        return {"cosine": _mean(self.sum, self.count), "cosine_min": _finite(self.least)}


class Error:
    """Outputs [N, ...]."""

    def __init__(self):
        self.signal = self.noise = 0.0

    def add(self, before: torch.Tensor, after: torch.Tensor) -> None:
        x, y = before.double(), after.double()
        self.signal += x.square().sum().item()
        self.noise += (x - y).square().sum().item()

    def figures(self) -> dict[str, float | None]:
        if self.signal == 0:
            return {"relative_output_error": 0.0 if self.noise == 0 else None}
        return {"relative_output_error": _finite(math.sqrt(self.noise / self.signal))}


class Divergence:
    """Logits [P, V] of P positions: the tokens of a text that are none of padding, or samples. Quantiles interpolate linearly, as numpy's do."""

    def __init__(self):
        self.kl: list[np.ndarray] = []
        self.same = 0

    def add(self, before: torch.Tensor, after: torch.Tensor) -> None:
        for x, y in _blocks(before, after):
            self.kl.append(divergence(log_probabilities(x), log_probabilities(y)).cpu().numpy())
            self.same += int((x.argmax(-1) == y.argmax(-1)).sum())

    @property
    def positions(self) -> int:
        return sum(map(len, self.kl))

    def figures(self) -> dict[str, float | None]:
        kl = np.concatenate(self.kl) if self.positions else np.array([math.nan])
        sound = bool(np.isfinite(kl).all())
        return {
            "kl": float(kl.mean()) if sound else None,
            "kl_p99": float(np.quantile(kl, 0.99)) if sound else None,
            "kl_max": float(kl.max()) if sound else None,
            "top1_agreement": _mean(self.same, self.positions),
        }


class Perplexity:
    """Logits [P, V] and the token that follows each, int64 [P]."""

    def __init__(self):
        self.count, self.before, self.after = 0, 0.0, 0.0

    def add(self, before: torch.Tensor, after: torch.Tensor, following: torch.Tensor) -> None:
        for x, y, token in _blocks(before, after, following):
            self.count += len(token)
            self.before -= log_probabilities(x).gather(-1, token[:, None]).sum().item()
            self.after -= log_probabilities(y).gather(-1, token[:, None]).sum().item()

    def figures(self) -> dict[str, float | None]:
        return {"perplexity_before": _exp(_mean(self.before, self.count)), "perplexity_after": _exp(_mean(self.after, self.count))}


class Accuracy:
    """Outputs [N, C] and labels, int64 [N]. A row with NaN is wrong."""

    def __init__(self):
        self.count, self.before, self.after = 0, 0, 0

    def add(self, before: torch.Tensor, after: torch.Tensor, labels: torch.Tensor) -> None:
        self.count += len(labels)
        self.before += _right(before, labels)
        self.after += _right(after, labels)

    def figures(self) -> dict[str, float | None]:
        return {"accuracy_before": _mean(self.before, self.count), "accuracy": _mean(self.after, self.count)}


def _right(outputs: torch.Tensor, labels: torch.Tensor) -> int:
    return int(((outputs.argmax(-1) == labels) & ~outputs.isnan().any(-1)).sum())


def _blocks(*tensors: torch.Tensor):
    """The same rows of each, so many at a time that a block of the first has at most _BLOCK values."""
    width = max(1, tensors[0][0].numel()) if len(tensors[0]) else 1
    return zip(*(t.split(max(1, _BLOCK // width)) for t in tensors), strict=True) if len(tensors[0]) else ()


def _or_one(t: torch.Tensor) -> torch.Tensor:
    return torch.where(t == 0, 1.0, t)


def _least(a: float, b: float) -> float:
    """NaN stays."""
    return b if math.isnan(b) or b < a else a


def _finite(x: float | None) -> float | None:
    return x if x is not None and math.isfinite(x) else None


def _mean(total: float, count: int) -> float | None:
    return _finite(total / count) if count else None


def _exp(x: float | None) -> float | None:
    return None if x is None or x > 700 else math.exp(x)
