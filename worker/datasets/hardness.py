"""How hard rows are to learn, by small networks early in their training (Paul, Ganguli, Dziugaite 2021, "Deep Learning on a Data Diet").

EL2N is the length of p - y, the error of the predicted probabilities; GraNd the length of the gradient of a row's loss by all weights. Of a network of
one hidden layer the latter follows from the errors delta that reach each layer and what goes into it, without a gradient for each row:
|grad W| = |delta| |input|, and for its bias |delta|. Both are means over networks of several seeds.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from worker.kernels.adam import Moments, step

_HIDDEN, _BATCH, _RATE, _AT_ONCE = 128, 128, 1e-3, 4096


def hardness(x: torch.Tensor, y: torch.Tensor, classes: int, kind: str, seeds: int, epochs: int, seed: int, progress: Callable[[int], None] = lambda n: None) -> torch.Tensor:
    """float32 [n].

    Args:
        x: float32 [n, d].
        y: int64 [n], below `classes`.
        kind: el2n or grand.
        epochs: passes over the rows before they are scored.
        progress: told of rows that were trained on or scored.
    """
    mean = x.mean(0)
    scale = (x - mean).pow(2).mean().sqrt().clamp_min(1e-12)  # one for all: features that hardly vary stay small
    total = torch.zeros(len(x))
    for i in range(seeds):
        g = torch.Generator().manual_seed(seed * 1000 + i)
        net = _network(x.shape[1], classes, g)
        _train(net, x, y, mean, scale, epochs, g, progress)
        for a in range(0, len(x), _AT_ONCE):
            total[a : a + _AT_ONCE] += _scores(net, (x[a : a + _AT_ONCE] - mean) / scale, y[a : a + _AT_ONCE], kind)
            progress(min(_AT_ONCE, len(x) - a))
    return total / seeds


def _network(d: int, classes: int, g: torch.Generator) -> list[torch.Tensor]:
    """Weights and biases; He's initialisation."""
    w1, w2 = torch.randn(_HIDDEN, d, generator=g) * (2 / d) ** 0.5, torch.randn(classes, _HIDDEN, generator=g) * (1 / _HIDDEN) ** 0.5
    return [p.requires_grad_() for p in (w1, torch.zeros(_HIDDEN), w2, torch.zeros(classes))]


def _forward(net: list[torch.Tensor], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    hidden = torch.relu(torch.nn.functional.linear(x, net[0], net[1]))
    return hidden, torch.nn.functional.linear(hidden, net[2], net[3])


def _train(net, x, y, mean, scale, epochs: int, g: torch.Generator, progress) -> None:
    moments = [Moments.like(p) for p in net]
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=g).split(_BATCH):
            loss = torch.nn.functional.cross_entropy(_forward(net, (x[rows] - mean) / scale)[1], y[rows])
            gradients = torch.autograd.grad(loss, net)
            with torch.no_grad():
                for p, m, gradient in zip(net, moments, gradients, strict=True):
                    p.sub_(step(m, gradient, _RATE))
            progress(len(rows))


@torch.no_grad()
def _scores(net: list[torch.Tensor], x: torch.Tensor, y: torch.Tensor, kind: str) -> torch.Tensor:
    hidden, logits = _forward(net, x)
    error = logits.softmax(1)
    error[torch.arange(len(y)), y] -= 1
    if kind == "el2n":
        return error.norm(dim=1)
    below = (error @ net[2]) * (hidden > 0)
    squares = error.pow(2).sum(1) * (hidden.pow(2).sum(1) + 1) + below.pow(2).sum(1) * (x.pow(2).sum(1) + 1)
    return squares.sqrt()
