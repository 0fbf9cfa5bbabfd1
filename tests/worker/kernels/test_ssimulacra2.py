"""SSIMULACRA 2 against what its authors' program says (github.com/cloudinary/ssimulacra2, version 2.1, built with libjxl's and Little CMS's arithmetic) of the same images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from worker.kernels import ssimulacra2
from worker.kernels.ssimulacra2 import Ssimulacra2

Y, X = np.mgrid[:150, :173].astype(float)


def original() -> np.ndarray:
    grain = 25 * np.sign(np.sin(X / 3.1) * np.sin(Y / 4.3))
    planes = [128 + 90 * np.sin(X / 9 + Y / 23) + grain, 128 + 80 * np.cos(X * Y / 900), 110 + 70 * np.sin((X - Y) / 17) + 30 * (np.hypot(X - 80, Y - 70) < 40)]
    return np.clip(np.rint(np.stack(planes, -1)), 0, 255).astype(np.uint8)


def coarse(pixels: np.ndarray, step: int) -> np.ndarray:
    return (pixels.astype(int) // step * step + step // 2).clip(0, 255).astype(np.uint8)


def blocks(pixels: np.ndarray, size: int) -> np.ndarray:
    out = pixels.astype(float)
    for i in range(0, len(out), size):
        for j in range(0, out.shape[1], size):
            out[i : i + size, j : j + size] = out[i : i + size, j : j + size].mean((0, 1))
    return np.rint(out).astype(np.uint8)


def planes(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.atleast_3d(pixels).transpose(2, 0, 1)))


A = original()
RAMP = (X.astype(int) * 255 // 172).astype(np.uint8)


@pytest.mark.parametrize(
    "a, b, score",
    [
        (A, coarse(A, 8), 89.0389), (A, coarse(A, 40), 37.5296), (A, blocks(A, 2), 80.6102), (A, np.minimum(A.astype(int) + 6, 255).astype(np.uint8), 87.3737), (A, np.roll(A, 1, 1), 40.3663),
        (A[:, :, 0], coarse(A, 40)[:, :, 0], 61.8572), (np.dstack([A, RAMP]), np.dstack([coarse(A, 40), RAMP]), 58.8782),
    ],
    ids=["8 levels", "40 levels", "blocks", "brighter", "moved", "grey", "alpha"],
)  # fmt: skip
def test_it_says_what_the_authors_program_says(a, b, score):
    assert Ssimulacra2(planes(a))(planes(b)) == pytest.approx(score, abs=0.3)


def test_what_is_equal_has_100_and_the_order_counts():
    judge = Ssimulacra2(planes(A))
    assert judge(planes(A)) == 100 and judge(planes(coarse(A, 40))) == judge(planes(coarse(A, 40)))
    assert abs(judge(planes(blocks(A, 4))) - Ssimulacra2(planes(blocks(A, 4)))(planes(A))) > 0.5
    with pytest.raises(ValueError):
        judge(planes(A[:-1]))


def test_strips_are_as_good_as_the_whole(monkeypatch):
    a = np.tile(A, (5, 1, 1))
    whole = Ssimulacra2(planes(a))(planes(coarse(a, 24)))
    monkeypatch.setattr(ssimulacra2, "_STRIP", 173 * 100)
    made = Ssimulacra2(planes(a))
    assert made(planes(coarse(a, 24))) == pytest.approx(whole, abs=1e-4) and not made._known


@pytest.mark.parametrize("shape", [(1, 1), (7, 300), (8, 9), (33, 17)])
def test_small_images_have_a_score(shape):
    a, b = (np.resize(x, (*shape, 3)) for x in (A, coarse(A, 40)))
    assert Ssimulacra2(planes(a))(planes(a)) == 100 and Ssimulacra2(planes(a))(planes(b)) <= 100
