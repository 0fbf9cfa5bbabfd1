"""How far what a model says is from what another, or a label, says. Every loss is a mean over samples (or over the positions that count), float32."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

LOGITS = ("classifier", "causal-lm", "seq2seq")
"""Tasks whose output are logits over the last dimension."""


def divergence(output: torch.Tensor, teacher: torch.Tensor, task: str, mask: torch.Tensor | None = None, temperature: float = 2.0) -> torch.Tensor:
    """Of `output` from `teacher`, both [N, ...]: T^2 KL(softmax(teacher / T), softmax(output / T)) for logits (Hinton et al., 2015, "Distilling the Knowledge
    in a Neural Network"), 1 - cosine for embeddings [N, D], else the squared error over the variance of the teacher's batch.

    Args:
        mask: bool [N, T], positions that count, for logits [N, T, V].
    """
    if task in LOGITS:
        p, q = (t.reshape(-1, t.shape[-1]) / temperature for t in (teacher, output))
        each = F.kl_div(q.log_softmax(-1), p.log_softmax(-1), reduction="none", log_target=True).sum(-1) * temperature**2
        return _mean(each, mask)
    if task == "encoder":
        return (1 - F.cosine_similarity(output, teacher, dim=-1)).mean()
    return (output - teacher).square().mean() / teacher.var(correction=0).clamp_min(torch.finfo(torch.float32).tiny)


def strayed(hidden: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor], mask: torch.Tensor | None = None) -> torch.Tensor:
    """How far hidden states are from the teacher's, layer by layer: |h - t|^2 / |t|^2 of each token, mean over tokens, then over layers. Every token of every
    layer is heard where an output says one thing of a whole sample (Sun et al., 2019, "Patient Knowledge Distillation"; Jiao et al., 2020, "TinyBERT").

    Args:
        hidden: of each layer [N, T, D], else [N, D] or [N, ...] of 4 and more dimensions, where the whole sample counts as one token.
        mask: bool [N, T], tokens that count.
    """
    each = []
    for own, his in zip(hidden, teacher, strict=True):
        first = 2 if his.ndim == 3 else 1
        error, size = (t.flatten(first).square().sum(-1) for t in (own - his, his))
        each.append(_mean((error / size.clamp_min(torch.finfo(torch.float32).tiny)).reshape(-1), mask if first == 2 else None))
    return torch.stack(each).mean()


def against_labels(output: torch.Tensor, labels: torch.Tensor, task: str, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Cross entropy in nats of a classifier's logits [N, C] against classes [N], of a language model's [N, T, V] against the tokens [N, T] that follow
    (where `mask` counts them), else the mean squared error."""
    if task == "causal-lm":
        each = F.cross_entropy(output[:, :-1].reshape(-1, output.shape[-1]), labels[:, 1:].reshape(-1), reduction="none")
        return _mean(each, None if mask is None else mask[:, 1:])
    if task == "classifier":
        return F.cross_entropy(output, labels)
    return F.mse_loss(output.reshape(len(labels), -1), labels.reshape(len(labels), -1).to(output.dtype))


def _mean(each: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    if mask is None:
        return each.mean()
    counted = mask.reshape(-1).to(each.dtype)
    return (each * counted).sum() / counted.sum().clamp_min(1)
