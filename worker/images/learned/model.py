"""A learned codec as a file, which stands beside the images that were coded with it and counts with them.

    "MPL1"  u8 channels  u8 transform (0: DCT, 1: its own)  u8 quality that it was fitted at  u8 width  u8 depth  u32le bytes of the transform  u32le bytes of the network
    transform   its own: as `transform.model` has it; DCT: 64 * channels x u8 coarse
    network     zlib of `depth` layers: u8 shift, O x i32le bias, O x I x 3 x 3 x i8 weight; I is 4 * channels + 1 at first, O 4 * channels at last, all others are `width`

It may be a stranger's: what it says is bounded before anything is unpacked, and its sums are shown to be exact.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, replace

import numpy as np

from worker.images.learned.network import MOST, Layer, inputs_of
from worker.images.transform import model as transform_model
from worker.images.transform.basis import BLOCK, Basis, dct
from worker.images.transform.coding import Damaged
from worker.kernels.integer_convolution import EXACT, bound

MAGIC = b"MPL1"
WIDEST, DEEPEST, MOST_SHIFT = 96, 8, 24
MOST_BYTES = 1 << 20
_HEAD = struct.Struct("<4sBBBBBII")


@dataclass(frozen=True)
class Model:
    """Args:
    own: whether the transform is its own, else the DCT with quantizer steps of its own.
    quality: that it was fitted at.
    layers: of the network; none: the transform alone.
    """

    basis: Basis
    own: bool
    quality: int
    layers: tuple[Layer, ...] = ()

    @property
    def channels(self) -> int:
        return self.basis.channels


def dumped(model: Model) -> bytes:
    transform = transform_model.dumped(model.basis) if model.own else model.basis.coarse.astype(np.uint8).tobytes()
    body = b"".join(bytes([x.shift]) + x.bias.astype("<i4").tobytes() + x.weight.astype(np.int8).tobytes() for x in model.layers)
    network = zlib.compress(body, 9) if body else b""
    width = len(model.layers[0].bias) if len(model.layers) > 1 else 0
    return _HEAD.pack(MAGIC, model.channels, model.own, model.quality, width, len(model.layers), len(transform), len(network)) + transform + network


def loaded(data: bytes) -> Model:
    """Raises: Damaged."""
    if not _HEAD.size <= len(data) <= MOST_BYTES:
        raise Damaged("the codec is cut off, or too large")
    magic, channels, own, quality, width, depth, transform, network = _HEAD.unpack_from(data)
    if magic != MAGIC or channels not in (1, 3) or own > 1 or not 1 <= quality <= 100 or depth > DEEPEST or not (1 <= width <= WIDEST if depth > 1 else width == 0):
        raise Damaged("the codec is none of ours")
    if len(data) != _HEAD.size + transform + network:
        raise Damaged("the codec has another size than it says")
    basis = _basis(data[_HEAD.size : _HEAD.size + transform], channels, own)
    return Model(basis, bool(own), quality, _layers(data[_HEAD.size + transform :], channels, width, depth))


def _basis(data: bytes, channels: int, own: int) -> Basis:
    if own:
        basis = transform_model.loaded(data)
        if basis.channels != channels:
            raise Damaged("the codec's transform is for other channels")
        return basis
    coarse = np.frombuffer(data, np.uint8).astype(np.int64)
    if len(coarse) != channels * BLOCK**2 or not coarse.all():
        raise Damaged("the codec's quantizer is none")
    return replace(dct(channels), coarse=coarse)


def _layers(data: bytes, channels: int, width: int, depth: int) -> tuple[Layer, ...]:
    sides = [inputs_of(channels), *[width] * (depth - 1), 4 * channels]
    shapes = list(zip(sides[1:], sides[:-1], strict=True))[:depth]
    size, stream = sum(1 + 4 * o + 9 * o * i for o, i in shapes), zlib.decompressobj()
    try:
        body = stream.decompress(data, size + 1) if depth else b""
    except zlib.error as e:
        raise Damaged(str(e)) from None
    if len(body) != size or (depth and (not stream.eof or stream.unused_data)) or (not depth and data):
        raise Damaged("the codec's network has another size than it says")
    layers, at = [], 0
    for o, i in shapes:
        bias = np.frombuffer(body, "<i4", o, at + 1).astype(np.int32)
        weight = np.frombuffer(body, np.int8, 9 * o * i, at + 1 + 4 * o).reshape(o, i, 3, 3)
        layers.append(Layer(weight, bias, body[at]))
        at += 1 + 4 * o + 9 * o * i
        if layers[-1].shift > MOST_SHIFT or bound(weight, bias, MOST) + (1 << MOST_SHIFT) >= EXACT:
            raise Damaged("the codec's network has values that no such network has")
    return tuple(layers)
