"""The transform codec: blocks of 8 x 8 through a fixed transform (DCT) or one learned from the user's own set (KLT), the small coefficients dropped, the others at equal distance, entropy-coded
under integer tables.

    "MPT1"  u32le width  u32le height  u8 channels  u8 basis (0: DCT)  u16le step, in sixteenths  u8 how far values stand below their level, in 256ths of the step  coefficients (`coding`)

Everything that decoding computes is an integer, so any machine has the same pixels.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cache

import numpy as np

from worker.images.picture import Picture
from worker.images.transform import coding
from worker.images.transform.basis import BLOCK, Basis, dct, forward, image, inverse, patches
from worker.images.transform.coding import Damaged

MAGIC = b"MPT1"
_HEAD = struct.Struct("<4sIIBBHB")
_FRACTION = 4
DROPPED = 0.64
"""Coefficients below so much of a step are dropped; 0.5 would be to the nearest. What they cost is more than what they bring."""
MOST_PIXELS = 1 << 24
"""All coefficients are in memory at once."""
_FIXED = cache(dct)


@dataclass(frozen=True)
class TransformCodec:
    """As `worker.images.codecs.Codec`.

    Args:
        variants: by effort: with the DCT, and with the learned transform where there is one.
        basis: the learned transform; `model` is its file.
    """

    variants: dict[str, tuple]
    basis: Basis | None = None
    model: bytes = b""
    name: str = "transform"
    form: str = "MPT"
    suffix: str = ".mpt"
    levels: tuple[int, int] = (1, 100)
    first: int = 40
    speed: None = None
    gain: float = 1.0
    lossless: None = None

    def refuses(self, picture: Picture) -> str | None:
        if picture.mode == "RGBA":
            return "it has no alpha"
        if picture.width * picture.height > MOST_PIXELS:
            return f"it takes {MOST_PIXELS} pixels at most"
        if self.basis is not None and self.basis.channels != picture.pixels.shape[2]:
            return "its transform is for images of other channels"
        return "it carries no colour profile" if picture.icc else None

    def variants_for(self, picture: Picture, effort: str) -> tuple:
        return self.variants[effort]

    def encode(self, picture: Picture, quality: int, variant=None, effort: str | None = None, beside: dict[str, bytes] | None = None) -> bytes:
        return encode(picture.pixels, step_of(quality), self.basis if variant and "learned" in variant.options else None)

    def same(self, variant, quality: int) -> int:
        return quality

    def overhead(self, variant) -> int:
        """Bytes that the job's result has once, beside its images."""
        return len(self.model) if "learned" in variant.options else 0

    def decode(self, data: bytes, mode: str) -> np.ndarray:
        return decode(data, self.basis)

    def look(self, data: bytes) -> tuple[tuple[int, int], dict]:
        """Width and height, and what the file carries beside pixels."""
        return header(data)[:2], {}


def step_of(quality: int) -> int:
    """In sixteenths: 1 at 100, twice as much every 12 below."""
    return round(16 * 2 ** ((100 - quality) / 12))


def _steps(basis: Basis, step: int) -> np.ndarray:
    return np.maximum(1, basis.coarse * step // 16)


def encode(pixels: np.ndarray, step: int, basis: Basis | None = None) -> bytes:
    """Args:
    pixels: [H, W, C] uint8, C 1 or 3.
    step: in sixteenths.
    basis: a learned one; None: the DCT.
    """
    used = basis or _FIXED(pixels.shape[2])
    steps = _steps(used, step) / 16
    scaled = forward(used, patches(pixels)) / steps
    sizes = np.floor(np.abs(scaled) + (1 - DROPPED))
    quantized = (np.sign(scaled) * np.minimum(sizes, coding.MOST - 1)).astype(np.int64)
    kept = quantized != 0
    below = np.clip(np.rint(256 * (np.abs(quantized[kept]) - np.abs(scaled[kept])).mean()), 0, 255) if kept.any() else 0
    head = _HEAD.pack(MAGIC, pixels.shape[1], pixels.shape[0], pixels.shape[2], basis is not None, step, int(below))
    return head + coding.encode(quantized, used)


def header(data: bytes) -> tuple[int, int, int, int, int, int]:
    """Width, height, channels, basis, step, below.

    Raises:
        Damaged.
    """
    if len(data) < _HEAD.size:
        raise Damaged("it is cut off")
    magic, width, height, channels, basis, step, below = _HEAD.unpack_from(data)
    if magic != MAGIC or channels not in (1, 3) or basis > 1 or not step or not 0 < width * height <= MOST_PIXELS:
        raise Damaged("its header is none of this codec")
    return width, height, channels, basis, step, below


def decode(data: bytes, basis: Basis | None = None) -> np.ndarray:
    """[H, W, C] uint8.

    Raises:
        Damaged: it is cut off, or none of ours, or made with another transform.
    """
    width, height, channels, learned, step, below = header(data)
    used = basis if learned else _FIXED(channels)
    if used is None or used.channels != channels:
        raise Damaged("it was made with a learned transform, which is not here")
    quantized = coding.decode(data[_HEAD.size :], used, -(-height // BLOCK), -(-width // BLOCK))
    steps = _steps(used, step)
    values = np.sign(quantized) * (np.abs(quantized) * steps - (below * steps >> 8))
    return image(inverse(used, values.astype(np.float64), _FRACTION), height, width)
