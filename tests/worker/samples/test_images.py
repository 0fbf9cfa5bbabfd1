"""Images: which inputs are taken for some, and what becomes of those that are moved."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.samples import Data, Images, perturbing
from worker.samples.images import MOVED, raster


def smooth(count: int, height: int, width: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Noise that neighbours share, float32 [count, channels, height, width]."""
    noise = torch.from_numpy(np.random.default_rng(seed).normal(size=(count, channels, height + 4, width + 4))).float()
    return torch.nn.functional.avg_pool2d(noise, 5, 1).numpy()


@pytest.mark.parametrize("height, width", [(28, 28), (16, 24), (24, 16), (12, 12)])
def test_images_are_known_by_their_numbers(height, width):
    x = smooth(200, height, width)
    assert raster(x) == raster(x[:, 0]) == raster(x.reshape(200, -1)) == (height, width)
    assert raster(x.reshape(200, -1) * 40 + 100) == (height, width)


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_none_is_left_alone(channels):
    rng = np.random.default_rng(1)
    x = smooth(200, 16, 16, channels)
    mixed = x.reshape(200, -1)[:, rng.permutation(256 * channels)]
    assert raster(mixed) is None and raster(mixed.reshape(x.shape)) is None
    assert channels == 1 or raster(x.reshape(200, -1)) is None  # three images in one row: 16 values are a row, and 32 are two
    noise = rng.normal(size=(200, 256)).astype(np.float32)
    for other in (noise, np.cumsum(noise, 1), np.sin(np.arange(256) / 9 + noise[:, :1]), np.zeros((200, 256), np.float32), noise[:, :7], x.astype(np.int64), x[:, :, :4]):
        assert raster(other) is None, other.shape


def batch_of(arrays: dict[str, np.ndarray]):
    count = len(next(iter(arrays.values())))
    return Data(arrays=arrays, labels=np.arange(count) % 3).batch(range(count))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(8, 30), st.integers(8, 60), st.integers(1, 3), st.integers(0, 2**31))
def test_each_row_is_moved_by_whole_pixels_and_the_edge_is_repeated(count, height, width, channels, seed):
    x = np.random.default_rng(seed).normal(size=(count, channels, height, width)).astype(np.float32)
    batch, rows = batch_of({"x": x.reshape(count, -1), "other": np.ones((count, 2), np.float32)}), list(range(seed % 2, count, 2))
    moved = Images({"x": (height, width)}, True)(batch, rows, torch.Generator().manual_seed(seed))
    assert np.array_equal(batch.inputs["x"].numpy(), x.reshape(count, -1)) and moved.inputs["other"] is batch.inputs["other"]
    down, right = (max(1, round(MOVED * side)) for side in (height, width))
    for i, row in enumerate(moved.inputs["x"].numpy().reshape(x.shape)):
        padded = np.pad(x[i], ((0, 0), (down, down), (right, right)), mode="edge")
        ways = [(a, b) for a in range(2 * down + 1) for b in range(2 * right + 1) if np.array_equal(row, padded[:, a : a + height, b : b + width])]
        assert ways and (i in rows or (down, right) in ways)
    assert moved.positions == tuple(-1 if i in rows else i for i in range(count)) and torch.equal(moved.labels, batch.labels)


def test_every_distance_is_drawn_and_both_inputs_go_the_same_way():
    column = np.tile(np.arange(30, dtype=np.float32), (400, 1, 30, 1))
    moved = Images({"a": (30, 30), "b": (30, 30)}, False)(batch_of({"a": column, "b": column}), list(range(400)), torch.Generator().manual_seed(0))
    by = moved.inputs["a"][:, 0, 15, 15] - 15
    assert sorted(set(by.tolist())) == [-2, -1, 0, 1, 2] and min((by == d).sum() for d in range(-2, 3)) > 50
    assert torch.equal(moved.inputs["a"], moved.inputs["b"]) and moved.labels is None


def test_labels_hold_where_they_are_classes():
    x = smooth(60, 12, 12)
    for task, keeps in (("classifier", True), ("regressor", False)):
        found = perturbing(SimpleNamespace(task=task, inputs={}), Data(arrays={"x": x}))
        assert found == Images({"x": (12, 12)}, keeps) and found.says.endswith("x holds images of 12 x 12")
    assert perturbing(SimpleNamespace(task="classifier", inputs={}), Data(arrays={"x": np.random.default_rng(0).normal(size=(60, 144))})) is None
