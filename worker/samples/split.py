"""Which samples are for what: `fit` to learn from, `stop` to say when to stop, `test` to judge by. None is in two of them, unless there are too few."""

from __future__ import annotations

import hashlib

SPLITS = ("fit", "stop", "test")
FEWEST = 20
"""Below this many samples all three are the whole."""
ENOUGH = 2000
"""No more than these are held out for either purpose: they tell an accuracy to within a percent, and what is more is better learned from."""


def split(count: int, name: str) -> list[int]:
    """Positions, ascending. Who goes where is drawn by position alone (SHA-256), so that neither an order of the data (by class, by length) nor a
    seed moves a sample from one to another. `stop` and `test` have a tenth each, ENOUGH at most.

    Raises:
        ValueError: `name` is none of SPLITS.
    """
    if name not in SPLITS:
        raise ValueError(f"{name!r} is none of {', '.join(SPLITS)}")
    if shared(count):
        return list(range(count))
    drawn = sorted(range(count), key=lambda i: hashlib.sha256(b"%d" % i).digest())
    held = min(count // 10, ENOUGH)
    parts = {"test": drawn[:held], "stop": drawn[held : 2 * held], "fit": drawn[2 * held :]}
    return sorted(parts[name])


def shared(count: int) -> bool:
    """Whether the three are the same samples."""
    return count < FEWEST
