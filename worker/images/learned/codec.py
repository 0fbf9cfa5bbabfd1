"""The learned codec: the transform codec with a transform and quantizer steps of its own, and a network behind it.

    "MPN1"  u8 quality  a stream of the transform codec
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from worker.images.learned.model import Model
from worker.images.learned.network import improved
from worker.images.picture import Picture
from worker.images.transform import codec as transform
from worker.images.transform.codec import TransformCodec, step_of
from worker.images.transform.coding import Damaged

MAGIC = b"MPN1"
_HEAD = struct.Struct("<4sB")


@dataclass(frozen=True)
class LearnedCodec(TransformCodec):
    """As `worker.images.codecs.Codec`. Without `fitted` it carries nothing.

    Args:
        fitted: what was trained; `model` is its file.
    """

    fitted: Model | None = None
    name: str = "learned"
    form: str = "MPN"
    suffix: str = ".mpn"

    def refuses(self, picture: Picture) -> str | None:
        if self.fitted is None:
            return "there is no codec that was trained"
        return super().refuses(picture)

    def encode(self, picture: Picture, quality: int, variant=None, effort: str | None = None, beside: dict[str, bytes] | None = None) -> bytes:
        return encode(picture.pixels, quality, self.fitted)

    def overhead(self, variant) -> int:
        return len(self.model)

    def decode(self, data: bytes, mode: str) -> np.ndarray:
        return decode(data, self.fitted)

    def look(self, data: bytes) -> tuple[tuple[int, int], dict]:
        _quality(data)
        return transform.header(data[_HEAD.size :])[:2], {}


def encode(pixels: np.ndarray, quality: int, model: Model) -> bytes:
    """Args: pixels: [H, W, C] uint8, of as many channels as the model's. quality: 1 to 100."""
    return _HEAD.pack(MAGIC, quality) + transform.encode(pixels, step_of(quality), model.basis)


def decode(data: bytes, model: Model | None) -> np.ndarray:
    """[H, W, C] uint8.

    Raises:
        Damaged: it is cut off, or none of ours, or its codec is not here.
    """
    quality = _quality(data)
    if model is None:
        raise Damaged("it was made with a learned codec, which is not here")
    return improved(model.layers, transform.decode(data[_HEAD.size :], model.basis), quality)


def _quality(data: bytes) -> int:
    if len(data) < _HEAD.size:
        raise Damaged("it is cut off")
    magic, quality = _HEAD.unpack_from(data)
    if magic != MAGIC or not 1 <= quality <= 100:
        raise Damaged("its header is none of this codec")
    return quality
