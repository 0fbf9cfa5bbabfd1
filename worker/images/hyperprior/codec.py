"""The stream of an image that an autoencoder with a hyperprior has coded.

    "MPH1"  u32le width  u32le height  u8 quality  u16le step of the quantizer, in 1 / ONE  words, u32le, of the range coder: side information, channel after channel, then latents, level after level

Decoding computes in integers alone (`integers`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import constriction
import numpy as np
import torch

from worker.images.hyperprior.coding import LONGEST, Tables
from worker.images.hyperprior.fixed import MULTIPLE, ONE, step_of
from worker.images.hyperprior.integers import FURTHEST_SIDE
from worker.images.hyperprior.model import Model
from worker.images.hyperprior.network import Network
from worker.images.hyperprior.training import padded
from worker.images.learned.codec import LearnedCodec
from worker.images.picture import Picture
from worker.images.transform.coding import Damaged

MAGIC = b"MPH1"
_HEAD = struct.Struct("<4sIIBH")
MOST_PIXELS = 1 << 24
_FURTHEST = (1 << LONGEST) - 1


def fits(width: int, height: int) -> bool:
    """Whether an image, its sides brought to whole multiples, is one of as many pixels as are taken."""
    return 0 < width and 0 < height and -(-width // MULTIPLE) * -(-height // MULTIPLE) * MULTIPLE**2 <= MOST_PIXELS


@dataclass(frozen=True)
class HyperpriorCodec(LearnedCodec):
    """As `worker.images.codecs.Codec`.

    Args:
        fitted: what decodes; `model` is its file.
        encoder: what encodes; where it is None, nothing can be encoded.
    """

    fitted: Model | None = None
    encoder: Network | None = None

    def refuses(self, picture: Picture) -> str | None:
        if picture.mode != {1: "L", 3: "RGB"}[self.fitted.channels]:
            return "it was trained on images of other channels"
        if not fits(picture.width, picture.height):
            return f"it takes {MOST_PIXELS} pixels at most"
        return "it carries no colour profile" if picture.icc else None

    def encode(self, picture: Picture, quality: int, variant=None, effort: str | None = None, beside: dict[str, bytes] | None = None) -> bytes:
        return encode(picture.pixels, quality, self.fitted, self.encoder)

    def decode(self, data: bytes, mode: str) -> np.ndarray:
        return decode(data, self.fitted)

    def look(self, data: bytes) -> tuple[tuple[int, int], dict]:
        return header(data)[:2], {}


@dataclass(frozen=True)
class Latents:
    """An image, analysed. y: [M, h, w], z: [Z, h / 4, w / 4], floating."""

    y: np.ndarray
    z: np.ndarray


@torch.no_grad()
def analysed(pixels: np.ndarray, network: Network) -> Latents:
    """Args: pixels: [H, W, C] uint8."""
    y, z = network.analyse(padded(pixels))
    return Latents(y[0].double().numpy(), z[0].double().numpy())


def quantized(latents: Latents, quality: int, model: Model) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Side information, latents in steps, and their levels, all int64."""
    z = np.clip(np.rint(latents.z), -FURTHEST_SIDE, FURTHEST_SIDE).astype(np.int64)
    mean, levels = model.decoder.expect(z, quality)
    y = np.clip(np.rint((latents.y * ONE - mean) / step_of(quality)), -_FURTHEST // 2, _FURTHEST // 2).astype(np.int64)
    return z, y, levels


def encode(pixels: np.ndarray, quality: int, model: Model, network: Network) -> bytes:
    """Args: pixels: [H, W, C] uint8, of as many channels as the model's. quality: 1 to 100. network: what encodes."""
    z, y, levels = quantized(analysed(pixels, network), quality, model)
    coder, tables = constriction.stream.queue.RangeEncoder(), Tables(model.tables)
    tables.write(coder, z.reshape(-1), _side_levels(model, z.shape[1:]))
    tables.write(coder, y.reshape(-1), levels.reshape(-1))
    return _HEAD.pack(MAGIC, pixels.shape[1], pixels.shape[0], quality, step_of(quality)) + coder.get_compressed().astype("<u4").tobytes()


def _side_levels(model: Model, sides: tuple[int, ...]) -> np.ndarray:
    return np.repeat(model.side_levels, sides[0] * sides[1])


def header(data: bytes) -> tuple[int, int, int, int]:
    """Width, height, quality, step.

    Raises:
        Damaged.
    """
    if len(data) < _HEAD.size or (len(data) - _HEAD.size) % 4:
        raise Damaged("it is cut off")
    magic, width, height, quality, step = _HEAD.unpack_from(data)
    if magic != MAGIC or not 1 <= quality <= 100 or not step or not fits(width, height):
        raise Damaged("its header is none of this codec")
    return width, height, quality, step


def decode(data: bytes, model: Model) -> np.ndarray:
    """[H, W, C] uint8.

    Raises:
        Damaged: it is cut off, or none of ours.
    """
    width, height, quality, step = header(data)
    h, w = -(-height // MULTIPLE), -(-width // MULTIPLE)
    coder, tables = constriction.stream.queue.RangeDecoder(np.frombuffer(data[_HEAD.size :], "<u4").astype(np.uint32)), Tables(model.tables)
    try:
        z = tables.read(coder, _side_levels(model, (h, w))).reshape(-1, h, w)
        mean, levels = model.decoder.expect(z, quality)
        y = tables.read(coder, levels.reshape(-1)).reshape(levels.shape)
    except (AssertionError, ValueError) as e:
        raise Damaged(str(e)) from None
    return np.ascontiguousarray(model.decoder.pixels(y * step + mean, quality)[:height, :width])
