"""What stands for several rows of a matrix at once, and how much of one is worked on together."""

from __future__ import annotations

import torch


def portion(device: torch.device) -> int:
    """Elements worked on together: on a CPU few enough for its cache, on a GPU so many that starting to work on them does not count."""
    return 1 << (24 if device.type == "cuda" else 18)


def rows_of(shared: torch.Tensor, rows: slice, count: int) -> torch.Tensor:
    """What stands for some of `count` rows.

    Args:
        shared: [S, ...]; S divides `count`, and each stands for count / S rows, one below another.

    Returns:
        [R, ...] for R rows; where S is 1, `shared` as it is.
    """
    if len(shared) in (1, count):
        return shared if len(shared) == 1 else shared[rows]
    return shared[torch.arange(*rows.indices(count), device=shared.device) // (count // len(shared))]


def books_of(levels: torch.Tensor, rows: slice, count: int) -> torch.Tensor:
    """The codebooks of some of `count` rows, as `worker.kernels.lookup.look_up` takes them.

    Args:
        levels: [K, L]: one for all, one for every count / K rows, or G for each row, one after another.
    """
    if len(levels) == 1 or not count or len(levels) % count:
        return rows_of(levels, rows, count)
    each, (start, stop, _) = len(levels) // count, rows.indices(count)
    return levels[start * each : stop * each]
