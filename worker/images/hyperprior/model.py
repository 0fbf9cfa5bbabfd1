"""An autoencoder with a hyperprior as files. What decodes stands beside the images that were coded with it, and counts with them; what encodes is in the codec's artifact alone.

    "MPH1"  u8 channels  u8 quality to begin with  u16le x 5: widths, latents, side  zlib of:
        tables   LEVELS x 15 x u16le (`coding.counted`)
        levels   side x u8: of side information
        layers   3 of the hyperprior, 10 of the synthesis: O x u8 shift, O x i32le bias, O x I x 3 x 3 x i8 weight

It may be a stranger's: what it says is bounded before anything is unpacked, and its sums are shown to be exact.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np

from worker.images.hyperprior import coding
from worker.images.hyperprior.fixed import FURTHEST, LEVELS, MOST, ONE
from worker.images.hyperprior.integers import FURTHEST_SIDE, Decoder, Layer
from worker.images.hyperprior.network import MOST_SHIFT, Shape
from worker.images.transform.coding import Damaged
from worker.kernels.integer_convolution import EXACT, bound

MAGIC = b"MPH1"
MOST_BYTES = 8 << 20
WIDEST = 512
_HEAD = struct.Struct("<4sBB5H")


@dataclass(frozen=True)
class Model:
    """Args:
    quality: to begin with.
    tables: [LEVELS, 15] uint16. side_levels: [Z] int64.
    """

    shape: Shape
    quality: int
    decoder: Decoder
    tables: np.ndarray
    side_levels: np.ndarray

    @property
    def channels(self) -> int:
        return self.shape.channels


def dumped(model: Model) -> bytes:
    layers = (*model.decoder.hyper, *model.decoder.synthesis)
    body = [model.tables.astype("<u2").tobytes(), model.side_levels.astype(np.uint8).tobytes()]
    body += [x.shift.astype(np.uint8).tobytes() + x.bias.astype("<i4").tobytes() + x.weight.astype(np.int8).tobytes() for x in layers]
    shape = model.shape
    return _HEAD.pack(MAGIC, shape.channels, model.quality, *shape.widths, shape.latents, shape.side) + zlib.compress(b"".join(body), 9)


def loaded(data: bytes) -> Model:
    """Raises: Damaged."""
    if not _HEAD.size <= len(data) <= MOST_BYTES:
        raise Damaged("the codec is cut off, or too large")
    magic, channels, quality, *sides = _HEAD.unpack_from(data)
    if magic != MAGIC or channels not in (1, 3) or not 1 <= quality <= 100 or not all(1 <= s <= WIDEST for s in sides):
        raise Damaged("the codec is none of ours")
    shape = Shape(channels, tuple(sides[:3]), *sides[3:])
    sizes = _sizes(shape)
    tables, size, stream = 2 * LEVELS * coding.ESCAPE, sum(o * (5 + 9 * i) for o, i in sizes), zlib.decompressobj()
    try:
        body = stream.decompress(data[_HEAD.size :], tables + shape.side + size + 1)
    except zlib.error as e:
        raise Damaged(str(e)) from None
    if len(body) != tables + shape.side + size or not stream.eof or stream.unused_data:
        raise Damaged("the codec has another size than it says")
    table = np.frombuffer(body[:tables], "<u2").reshape(LEVELS, -1).astype(np.uint16)
    levels = np.frombuffer(body, np.uint8, shape.side, tables).astype(np.int64)
    if not coding.fits(table) or levels.max() >= LEVELS:
        raise Damaged("the codec has tables that are none")
    layers = _layers(body[tables + shape.side :], sizes)
    return Model(shape, quality, Decoder(layers[:3], layers[3:]), table, levels)


def _sizes(shape: Shape) -> list[tuple[int, int]]:
    """(outputs, inputs) of each layer."""
    (a, b, c), m, z = shape.widths, shape.latents, shape.side
    out = [(4 * z, z), (4 * z, z), (2 * m, z)]
    for i, o in ((m + 1, c), (c, b), (b, a)):
        out += [(4 * o, i), (o, o), (o, o)]
    return [*out, (4 * shape.channels, a)]


def _layers(body: bytes, sizes: list[tuple[int, int]]) -> tuple[Layer, ...]:
    out, at = [], 0
    for n, (o, i) in enumerate(sizes):
        shift = np.frombuffer(body, np.uint8, o, at).astype(np.int64)
        bias = np.frombuffer(body, "<i4", o, at + o).astype(np.int32)
        weight = np.frombuffer(body, np.int8, 9 * o * i, at + 5 * o).reshape(o, i, 3, 3)
        at += o * (5 + 9 * i)
        most = {0: FURTHEST_SIDE * ONE, 3: FURTHEST}.get(n, MOST)
        if shift.max() > MOST_SHIFT or bound(weight, bias, most) + (1 << MOST_SHIFT) >= EXACT:
            raise Damaged("the codec has values that no such network has")
        out.append(Layer(weight, bias, shift))
    return tuple(out)
