"""Which option to take for each of several groups so that the loss is least and the sizes fit: the multiple-choice knapsack, by dynamic programming.

    least[g, s] = min over options o of group g of  least[g - 1, s - size(g, o)] + loss(g, o)

(Shoham and Gersho, 1988, "Efficient bit allocation for an arbitrary set of quantizers", take the points of the convex hull alone; this takes all.) Sizes
are counted in units of the budget's 2^-15, rounded up, so that what is chosen always fits; below a budget of 2^15 the choice is optimal.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_UNITS = 1 << 15


def allocate(sizes: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], budget: int) -> list[int] | None:
    """The option of each group.

    Args:
        sizes: of each group, of each of its options, >= 0; `losses` alike.
        budget: what the chosen sizes may come to together.

    Returns:
        None where even the smallest do not fit. Of options that are equally good, the first.
    """
    unit = max(1, -(-budget // _UNITS))
    room = budget // unit
    least = np.zeros(room + 1)  # of the groups so far, for every size up to the room
    chosen = np.zeros((len(sizes), room + 1), np.int16)
    for g, (group, costs) in enumerate(zip(sizes, losses, strict=True)):
        best = np.full(room + 1, np.inf)
        for option, (size, loss) in enumerate(zip(group, costs, strict=True)):
            units = -(-size // unit)
            if units > room:
                continue
            through = np.full(room + 1, np.inf)
            through[units:] = least[: room + 1 - units] + loss
            better = through < best
            best[better], chosen[g, better] = through[better], option
        least = best
    if not np.isfinite(least[room]):
        return None
    at, out = room, []
    for g in reversed(range(len(sizes))):
        out.append(int(chosen[g, at]))
        at -= -(-sizes[g][out[-1]] // unit)
    return out[::-1]
