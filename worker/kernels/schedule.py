"""How a sparsity and a learning rate go over the steps of a training."""

from __future__ import annotations

import math

WARMING = 50


def cubic(sparsity: float, t: float) -> float:
    """s (1 - (1 - t)^3), t from 0 to 1: much at first, when much is superfluous, little at the end (Zhu and Gupta, 2017, "To prune, or not to prune")."""
    return sparsity * (1 - (1 - min(max(t, 0.0), 1.0)) ** 3)


def cosine(t: float, floor: float = 0.01) -> float:
    """From 1 at t = 0 to `floor` at t = 1, along half a cosine (Loshchilov and Hutter, 2017, "SGDR")."""
    return floor + (1 - floor) * (1 + math.cos(math.pi * min(max(t, 0.0), 1.0))) / 2


def warmed(step: int, steps: int) -> float:
    """What a rate is multiplied by at the first of `steps` steps: up to 1 in even parts, over a tenth of them, WARMING at most. Adam's first steps are as long in
    every direction, however little the gradient says (Liu et al., 2020, "On the Variance of the Adaptive Learning Rate and Beyond").
    """
    return min(1.0, (step + 1) / max(1, min(steps // 10, WARMING)))


def prunings(steps: int, count: int, part: float) -> list[int]:
    """At which of `steps` training steps each of `count` prunings takes place: spread evenly over the first `part` of them, none before the first step
    has been taken. Ascending; several at one step where there are more prunings than steps.
    """
    last = max(1, int(steps * part))
    return [max(1, last * (i + 1) // count) for i in range(count)]
