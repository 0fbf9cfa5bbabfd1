"""The gradient of a layer's weight for each sample of a batch, from what went into the layer (x) and what came back to its output (g).

    linear       y = x W^T     dW = g^T x       W [O, I]
    Conv1D       y = x W       dW = x^T g       W [I, O], GPT-2's
    convolution  y = x * W     dW = conv(x, g)  W [O, I / groups, ...]
    embedding    y = W[x]      dW[x] += g       W [V, D]

Exact, as autograd has it, and cheaper: no backward pass for each sample (Goodfellow, 2015, "Efficient Per-Example Gradient Computations").
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import grad

_WEIGHT = {1: grad.conv1d_weight, 2: grad.conv2d_weight, 3: grad.conv3d_weight}


def is_turned(module: nn.Module) -> bool:
    """Whether it is transformers' Conv1D, a linear layer whose weight is [I, O]."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def is_matrix(module: nn.Module) -> bool:
    """Whether it is y = x W^T + b, or a Conv1D; not what makes something else of it, as Llama 4's router does."""
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward or is_turned(module)


def supported(module: nn.Module) -> bool:
    """Whether `each` knows the layer; what it gives is held against autograd all the same before it is used."""
    if type(module) in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        return module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return is_matrix(module) or isinstance(module, nn.Embedding)


def by_sample(module: nn.Module, x: torch.Tensor, g: torch.Tensor, samples: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """x and g with the samples first: matrices [n, T, I] and [n, T, O], embeddings [n, T] and [n, T, D], convolutions as they are.

    Returns:
        None where the batch cannot be told apart by shape.
    """
    if is_matrix(module) or isinstance(module, nn.Embedding):
        x = x.reshape(-1) if isinstance(module, nn.Embedding) else x.reshape(-1, x.shape[-1])
        if len(x) % samples or not len(x):
            return None
        return x.unflatten(0, (samples, -1)), g.reshape(-1, g.shape[-1]).unflatten(0, (samples, -1))
    return (x, g) if len(x) == samples and x.ndim == g.ndim == module.weight.ndim else None


def each(module: nn.Module, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """The gradient of `module.weight` for one sample; x and g are one row of what `by_sample` gives. float32, the weight's shape."""
    if isinstance(module, nn.Linear):
        return g.T @ x
    if is_turned(module):
        return x.T @ g
    if isinstance(module, nn.Embedding):
        rows, values = touched(module, x, g)
        return torch.zeros_like(module.weight).index_copy_(0, rows, values)
    dims = module.weight.ndim - 2
    return _WEIGHT[dims](x[None], module.weight.shape, g[None], module.stride, module.padding, module.dilation, module.groups)


def touched(module: nn.Embedding, ids: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which rows of an embedding a sample has gradients for, [R] without duplicates, and those gradients [R, D]."""
    if module.padding_idx is not None:
        keep = ids != module.padding_idx
        ids, g = ids[keep], g[keep]
    rows, where = torch.unique(ids, return_inverse=True)
    return rows, torch.zeros(len(rows), g.shape[1], dtype=g.dtype, device=g.device).index_add_(0, where, g)
