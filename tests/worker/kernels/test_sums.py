"""The fixed order of a sum, against the same order written out in scalar float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from worker.kernels.sums import ordered_sum


def scalar(values: np.ndarray) -> np.float32:
    """128-blocks in order; in a block 16 lanes, ascending, then the tree."""
    total = None
    for start in range(0, max(1, len(values)), 128):
        lanes = [np.float32(0)] * 16
        for i, v in enumerate(values[start : start + 128]):
            lanes[i % 16] = np.float32(lanes[i % 16] + v)
        while len(lanes) > 1:
            half = len(lanes) // 2
            lanes = [np.float32(a + b) for a, b in zip(lanes[:half], lanes[half:], strict=True)]
        total = lanes[0] if total is None else np.float32(total + lanes[0])
    return total


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 100, 127, 128, 129, 500, 1000])
def test_the_order_is_kept_to_the_bit(n):
    rng = np.random.default_rng(n)
    x = (rng.normal(size=(3, n)) * 10.0 ** rng.integers(-6, 7, (3, n))).astype(np.float32)
    got = ordered_sum(torch.from_numpy(x)).numpy()
    assert got.tobytes() == np.array([scalar(row) for row in x], np.float32).tobytes()


def test_threads_change_nothing():
    x = torch.randn(64, 4096)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(ordered_sum(x).numpy().tobytes())
    torch.set_num_threads(before)
    assert results[0] == results[1]
