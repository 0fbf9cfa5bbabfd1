"""How a sparsity and a learning rate go over the steps of a training."""

from __future__ import annotations

import math


def cubic(sparsity: float, t: float) -> float:
    """s (1 - (1 - t)^3), t from 0 to 1: much at first, when much is superfluous, little at the end (Zhu and Gupta, 2017, "To prune, or not to prune")."""
    return sparsity * (1 - (1 - min(max(t, 0.0), 1.0)) ** 3)


def cosine(t: float, floor: float = 0.01) -> float:
    """From 1 at t = 0 to `floor` at t = 1, along half a cosine (Loshchilov and Hutter, 2017, "SGDR")."""
    return floor + (1 - floor) * (1 + math.cos(math.pi * min(max(t, 0.0), 1.0))) / 2


def prunings(steps: int, count: int, part: float) -> list[int]:
    """At which of `steps` training steps each of `count` prunings takes place: spread evenly over the first `part` of them, none before the first step
    has been taken. Ascending; several at one step where there are more prunings than steps.
    """
    last = max(1, int(steps * part))
    return [max(1, last * (i + 1) // count) for i in range(count)]
