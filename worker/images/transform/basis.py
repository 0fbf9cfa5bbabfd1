"""The block transforms, as matrices of integers: an orthonormal matrix times SCALE, rounded.

    DCT     of each channel of BLOCK x BLOCK pixels, channels turned to grey and two opponent colours before
    KLT     the eigenvectors of the second moments of the patches of an image set, the largest first: the transform that packs that set into fewest coefficients

A patch is [C * BLOCK * BLOCK] values less 128. Decoding multiplies integers only, in float64, whose sums stay below 2^53: exact, so every machine has the same pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BLOCK = 8
SCALE = 1 << 11
LEAST_VARIANCE = 3.0
"""Of a component that is kept, in squared levels of 255."""
_COLOURS = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])


@dataclass(frozen=True)
class Basis:
    """Args:
    matrix: [R, K] int16: row k makes coefficient k. K is C * BLOCK * BLOCK, R at most that; rows are in the order in which they are coded.
    relatives: [R, 2] int64: coefficients coded before k whose size tells of its own; -1: none.
    coarse: [R] int64: its quantizer's step, in sixteenths of the common one.
    predicted: how many of the first coefficients stand for means, and are predicted from neighbouring blocks.
    """

    matrix: np.ndarray
    relatives: np.ndarray
    coarse: np.ndarray
    predicted: int

    @property
    def channels(self) -> int:
        return self.matrix.shape[1] // BLOCK**2


def dct(channels: int) -> Basis:
    """Args: channels: 1 or 3."""
    n = np.arange(BLOCK)
    one = np.cos(np.pi * (2 * n[None] + 1) * n[:, None] / (2 * BLOCK)) * np.sqrt(2 / BLOCK)
    one[0] /= np.sqrt(2)
    places = [(u + v, c, u, v) for c in range(channels) for u in range(BLOCK) for v in range(BLOCK)]
    places.sort(key=lambda p: (p[0] > 0, p[0] + 2 * bool(p[1]), p[1], p[2]))
    at = {p[1:]: i for i, p in enumerate(places)}
    colours = _COLOURS if channels == 3 else np.ones((1, 1))
    rows = np.einsum("cd,ux,vy->cuvdxy", colours, one, one).reshape(channels, BLOCK, BLOCK, -1)
    matrix = np.stack([rows[c, u, v] for _, c, u, v in places])
    relatives = np.array([[_earlier(at, i, (c, u - 1, v)), _earlier(at, i, (c, u, v - 1))] for i, (_, c, u, v) in enumerate(places)])
    coarse = np.array([(2 if c == 0 else 4) * (8 + u + v) for _, c, u, v in places])  # eyes, and MS-SSIM, mind fine structure and colour less
    return Basis(np.rint(matrix * SCALE).astype(np.int16), relatives, coarse, channels)


def _earlier(at: dict, i: int, place: tuple[int, int, int]) -> int:
    found = at.get(place, -1)
    return found if found < i else -1


def klt(moments: np.ndarray, count: int) -> Basis:
    """The transform of a set; components that hardly vary are dropped, the smallest first.

    Args:
        moments: [K, K] sums of products of `count` patches.
    """
    values, vectors = np.linalg.eigh(moments / count)
    order = np.argsort(-values)
    order = order[: max(8, int((values > LEAST_VARIANCE).sum()))]
    matrix = vectors[:, order].T
    matrix *= np.where(matrix[np.arange(len(matrix)), np.abs(matrix).argmax(1)] < 0, -1, 1)[:, None]
    fixed = dct(matrix.shape[1] // BLOCK**2)
    coarse = np.square(matrix @ fixed.matrix.T.astype(np.float64) / SCALE) @ fixed.coarse  # that of the DCT's coefficients which it is made of
    return of_matrix(np.rint(matrix * SCALE).astype(np.int16), np.clip(np.rint(coarse), 1, 255).astype(np.int64))


def of_matrix(matrix: np.ndarray, coarse: np.ndarray) -> Basis:
    """A KLT as it was stored. Its first coefficients are the means of colours, nearly."""
    k = np.arange(len(matrix))
    return Basis(matrix, np.stack([k - 1, np.where(k > 1, k - 2, -1)], 1), coarse, 1)


def moments_of(pixels: np.ndarray) -> tuple[np.ndarray, int]:
    """Sums of products of an image's patches, [K, K], and how many there are."""
    flat = patches(pixels)
    flat = flat.reshape(-1, flat.shape[-1])
    return flat.T @ flat, len(flat)


def patches(pixels: np.ndarray) -> np.ndarray:
    """[H, W, C] uint8 -> [ceil(H / 8), ceil(W / 8), K] float64; edges are repeated."""
    h, w, c = pixels.shape
    padded = np.pad(pixels, ((0, -h % BLOCK), (0, -w % BLOCK), (0, 0)), mode="edge").astype(np.float64) - 128
    rows, columns = padded.shape[0] // BLOCK, padded.shape[1] // BLOCK
    return padded.reshape(rows, BLOCK, columns, BLOCK, c).transpose(0, 2, 4, 1, 3).reshape(rows, columns, -1)


def image(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """[rows, columns, K] -> [H, W, C] uint8, the inverse of `patches`."""
    rows, columns, k = values.shape
    c = k // BLOCK**2
    whole = values.reshape(rows, columns, c, BLOCK, BLOCK).transpose(0, 3, 1, 4, 2).reshape(rows * BLOCK, columns * BLOCK, c)
    return np.ascontiguousarray(np.clip(whole + 128, 0, 255).astype(np.uint8)[:height, :width])


def forward(basis: Basis, values: np.ndarray) -> np.ndarray:
    """Patches -> coefficients, [..., K] float64."""
    return values @ (basis.matrix.T / float(SCALE))


def inverse(basis: Basis, coefficients: np.ndarray, fraction: int) -> np.ndarray:
    """Coefficients times 2^fraction, integers as float64 below 2^31 -> patches, rounded to integers. Exact."""
    sums = coefficients @ basis.matrix.astype(np.float64)
    return np.floor(sums / (SCALE << fraction) + 0.5)
